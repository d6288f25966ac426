"""`estiba info`: the cluster, and the members of its control plane."""

import json
import time

import click

from controlplane.cli.context import Session, pass_session


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print.",
)
@pass_session
def command(session: Session, output: str) -> None:
    """Show the cluster, and which members of its control plane there are.

    \b
    Examples:
      estiba info
      estiba info -o json
    """
    from google.protobuf.json_format import MessageToDict

    from controlplane.cli import render
    from estiba.v1 import control_pb2

    answer = session.connection.call(lambda stub: stub.GetCluster, control_pb2.GetClusterRequest())
    if output == "json":
        shown = MessageToDict(answer, preserving_proto_field_name=True)
        click.echo(json.dumps(shown, indent=2))
    else:
        click.echo(render.cluster(answer, now_s=time.time()), nl=False)
