"""`estiba cluster token`: make, show and remove the tokens that admit machines as nodes."""

import json
import secrets
import time
from typing import TYPE_CHECKING

import click

from controlplane.cli import params
from controlplane.cli.context import Session, list_options, pass_session, print_json, say
from controlplane.cli.groups import Verbs

if TYPE_CHECKING:
    from controlplane.cli.connection import Connection
    from estiba.v1 import control_pb2


@click.group(cls=Verbs)
def command() -> None:
    """Make, show and remove the tokens by which machines join."""


@command.command()
@click.option(
    "--ttl",
    type=params.DURATION,
    show_default="24h",
    help="How long it admits machines, at most 30d.",
)
@click.option("--uses", type=params.COUNT, show_default="10", help="How many machines it admits.")
@click.option("-q", "--quiet", is_flag=True, help="Print the token alone.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["command", "json"]),
    default="command",
    show_default=True,
    help="How to print.",
)
@pass_session
def create(
    session: Session, ttl: int | None, uses: int | None, output: str, *, quiet: bool
) -> None:
    """Make a token, and print the command that joins a machine by it.

    The token is shown this once: whoever has it can join until it expires or is used up.

    \b
    Examples:
      estiba cluster token create
      estiba cluster token create --ttl 1h --uses 3
      estiba cluster token create -q
    """
    from google.protobuf.json_format import MessageToDict

    if uses == 0:
        raise click.BadParameter("it would admit nobody", param_hint="--uses")
    answer = make(session.connection, ttl=ttl, uses=uses)
    if quiet:
        click.echo(answer.text)
    elif output == "json":
        click.echo(json.dumps(MessageToDict(answer, preserving_proto_field_name=True), indent=2))
    else:
        offer(answer)


def make(
    connection: "Connection", *, ttl: int | None = None, uses: int | None = None
) -> "control_pb2.CreateJoinTokenResponse":
    from estiba.kit import jointoken
    from estiba.v1 import control_pb2

    request = control_pb2.CreateJoinTokenRequest(
        id=jointoken.letters(secrets.token_bytes(jointoken.ID_BYTES)),
        secret=jointoken.letters(secrets.token_bytes(jointoken.SECRET_BYTES)),
        uses=uses or 0,
    )
    if ttl is not None:
        request.life.FromMicroseconds(ttl)
    return connection.call(lambda stub: stub.CreateJoinToken, request)


def offer(made: "control_pb2.CreateJoinTokenResponse") -> None:
    """Print the command that joins a machine, and say what it is."""
    from controlplane.cli import render

    say(render.offer(made.token))
    click.echo(render.join_command(made))


@command.command("ls")
@list_options
@pass_session
def ls(session: Session, output: str, *, quiet: bool) -> None:
    """List tokens: how many machines they still admit, and for how long. Secrets are not shown.

    \b
    Examples:
      estiba cluster token ls
      estiba cluster token ls -o json
    """
    from controlplane.cli import render
    from estiba.v1 import control_pb2

    request = control_pb2.ListJoinTokensRequest()
    found = session.connection.call(lambda stub: stub.ListJoinTokens, request).tokens
    if quiet:
        for token in found:
            click.echo(token.metadata.id)
    elif output == "json":
        print_json(found)
    else:
        click.echo(render.tokens(found, now_s=time.time()), nl=False)


@command.command()
@click.argument("tokens", nargs=-1, required=True)
@pass_session
def rm(session: Session, tokens: tuple[str, ...]) -> None:
    """Remove TOKENS by their ids: they admit nobody from now on; nodes that joined stay.

    \b
    Example:
      estiba cluster token rm abcdefgh
    """
    from estiba.v1 import control_pb2

    for token in tokens:
        request = control_pb2.RemoveJoinTokenRequest(id=token)
        session.connection.call(lambda stub: stub.RemoveJoinToken, request)
        click.echo(token)
