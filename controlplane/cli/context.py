"""What all commands share: the connection, made when first needed, and where output goes.

Only data goes to standard output; whatever is said about it goes to standard error.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from estiba.kit.text import plain

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from controlplane.cli.connection import Connection

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Session:
    """One command's run against one cluster."""

    servers: tuple[str, ...] = ()
    tls_dir: Path | None = None

    @cached_property
    def connection(self) -> "Connection":
        # gRPC takes longer to import than most commands take to say --help.
        from controlplane.cli.connection import Connection, find

        return Connection(find(self.servers, self.tls_dir), tell=say)


pass_session = click.make_pass_decorator(Session, ensure=True)


def list_options(command: F) -> F:
    """Give a command that lists things its -o and -q."""
    kind = click.Choice(["table", "json"])
    command = click.option("-q", "--quiet", is_flag=True, help="Print ids only.")(command)
    return click.option(
        "-o", "--output", type=kind, default="table", show_default=True, help="How to print."
    )(command)


def print_json(messages: "Iterable[Message]") -> None:
    """Print messages as one JSON list, with the field names of the .proto files."""
    from google.protobuf.json_format import MessageToDict

    found = [MessageToDict(message, preserving_proto_field_name=True) for message in messages]
    click.echo(json.dumps(found, indent=2))


def warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        say(f"warning: {sentence}")


def say(sentence: str) -> None:
    """Tell a person something, apart from the data."""
    # Some of it is what nodes said.
    click.echo(f"estiba: {plain(sentence)}", err=True)


def on_terminal() -> bool:
    return sys.stderr.isatty()
