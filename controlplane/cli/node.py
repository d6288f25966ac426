"""`estiba node`: show nodes, label them, take them out of service, forget them."""

import click

from controlplane.cli import params
from controlplane.cli.context import Session, list_options, pass_session, print_json, warn
from controlplane.cli.groups import Verbs


@click.group(cls=Verbs)
def command() -> None:
    """Show and change nodes."""


@command.command("ls")
@list_options
@pass_session
def ls(session: Session, output: str, *, quiet: bool) -> None:
    """List nodes: whether they answer, what they take, and what is used of them.

    \b
    Examples:
      estiba node ls
      estiba node ls -o json
    """
    from controlplane.cli import listing, render

    found, warnings = listing.nodes(session.connection, with_usage=not quiet)
    warn(warnings)
    if quiet:
        for node in found:
            click.echo(node.metadata.id)
    elif output == "json":
        print_json(found)
    else:
        click.echo(render.nodes(found), nl=False)


@command.command()
@click.argument("nodes", nargs=-1, required=True, shell_complete=params.complete_nodes)
@pass_session
def inspect(session: Session, nodes: tuple[str, ...]) -> None:
    """Print everything about NODES as a JSON list.

    \b
    Example:
      estiba node inspect n1
    """
    from controlplane.cli import listing

    print_json([listing.node(session.connection, name) for name in nodes])


@command.command()
@click.option("--label-add", type=params.PAIR, multiple=True, help="NAME=VALUE.")
@click.option("--label-rm", multiple=True, help="NAME of a label to drop.")
@click.option(
    "--availability",
    type=click.Choice(["active", "pause", "drain"]),
    help="Take new tasks; take none; take none and move those that are there.",
)
@click.argument("node", shell_complete=params.complete_nodes)
@pass_session
def update(
    session: Session,
    node: str,
    label_add: tuple[tuple[str, str], ...],
    label_rm: tuple[str, ...],
    availability: str | None,
) -> None:
    """Change NODE's labels, or what tasks it takes.

    \b
    Examples:
      estiba node update --label-add disk=ssd n1
      estiba node update --availability drain n2
    """
    from controlplane.cli import listing, spec
    from estiba.v1 import control_pb2, types_pb2

    def write() -> types_pb2.Node:
        present = listing.node(session.connection, node)
        request = control_pb2.UpdateNodeRequest(
            node=present.metadata.id,
            spec=present.spec,
            labels=spec.change_labels(present.metadata.labels, label_add, label_rm),
            read_at=present.metadata.revision,
        )
        if availability is not None:
            name = f"AVAILABILITY_{availability.upper()}"
            request.spec.availability = types_pb2.Availability.Value(name)
        return session.connection.call(lambda stub: stub.UpdateNode, request)

    listing.change(write)


@command.command()
@click.option("--force", is_flag=True, help="Also those that are ready.")
@click.argument("nodes", nargs=-1, required=True, shell_complete=params.complete_nodes)
@pass_session
def rm(session: Session, nodes: tuple[str, ...], *, force: bool) -> None:
    """Forget NODES for good: their tasks go elsewhere, and they are refused if they return.

    \b
    Examples:
      estiba node rm n3
      estiba node rm --force n3
    """
    from estiba.v1 import control_pb2

    for name in nodes:
        request = control_pb2.RemoveNodeRequest(node=name, force=force)
        session.connection.call(lambda stub: stub.RemoveNode, request)
        click.echo(name)
