"""Option types: sizes, processors, durations, name=value pairs. A fault names its flag."""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from controlplane.cli import units
from controlplane.cli.context import Session
from controlplane.cli.errors import CliError

T = TypeVar("T")

MOST = 2**32 - 1


class Parsed(click.ParamType[T]):
    """A value that one of our parsers reads."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """Read what was typed. click hands a default through here too, which was typed by us."""
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    return key, value


def _variable(text: str) -> str:
    """Read NAME=VALUE, or NAME, which is taken from the environment."""
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError(f"{text!r} names no environment variable: write NAME=VALUE")
    if equals:
        return text
    if name not in os.environ:
        raise ValueError(f"{name} has no value here, and is not set in your environment")
    return f"{name}={os.environ[name]}"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST:
        raise ValueError(f"{text!r} is not a number from 0 to {MOST}")
    return int(text)


def _words(text: str) -> list[str]:
    return shlex.split(text)


def _http(text: str) -> tuple[int, str]:
    """Read PORT or PORT/PATH."""
    port, _, path = text.partition("/")
    return _port(port), f"/{path}"


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port: write a number from 1 to 65535")
    return int(text)


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", text):
        raise ValueError(f"{text!r} is no name: use 1 to 40 small letters, digits and hyphens")
    return text


def _scale(text: str) -> tuple[str, int]:
    name, equals, count = text.rpartition("=")
    if not name or not equals or not count.isdecimal() or int(count) > MOST:
        raise ValueError(f"{text!r} is not SERVICE=REPLICAS, such as web=5")
    return name, int(count)


BYTES = Parsed("size", units.parse_bytes)
COUNT = Parsed("number", _count)
CPUS = Parsed("processors", units.parse_cpus)
DURATION = Parsed("duration", units.parse_duration)
NAME = Parsed("name", _name)
PAIR = Parsed("name=value", _pair)
VARIABLE = Parsed("name[=value]", _variable)
WORDS = Parsed("command line", _words)
HTTP = Parsed("port[/path]", _http)
PORT = Parsed("port", _port)
SCALE = Parsed("service=replicas", _scale)

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completer(names: Callable[[Session], Sequence[str]]) -> Completer:
    def complete(
        ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        root = ctx.find_root().params
        session = Session(tuple(root.get("server") or ()), root.get("tls_dir"))
        try:
            found = names(session)
        except CliError:
            # Whoever presses TAB is not helped by an error in the middle of the line.
            return []
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]

    return complete


def _services(session: Session) -> list[str]:
    from controlplane.cli import listing

    return [service.metadata.name for service in listing.services(session.connection)]


def _nodes(session: Session) -> list[str]:
    from controlplane.cli import listing

    return [node.metadata.name for node in listing.nodes(session.connection)[0]]


complete_services = _completer(_services)
complete_nodes = _completer(_nodes)
