"""`estiba node`: show nodes, label them, take them out of service, forget them; and be one."""

import socket

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


@command.command()
@click.option(
    "--token",
    default="",
    envvar="ESTIBA_JOIN_TOKEN",
    show_envvar=True,
    help="What `estiba cluster token create` printed; an argument is seen by everybody here.",
)
@click.option(
    "--advertise-addr",
    default="",
    metavar="ADDRESS|LINK",
    help="Where other nodes reach this one; if not given, the address that leads to the cluster.",
)
@click.option("--hostname", default=socket.gethostname, help="Another name than the machine's.")
@click.argument("address", metavar="HOST[:PORT]")
def join(token: str, advertise_addr: str, hostname: str, address: str) -> None:
    """Make this machine a node of the cluster whose control plane is at HOST.

    The token says which cluster that is, so nothing is said to another one. On a machine that is
    a node of it already, with a certificate that is good, it changes nothing.

    \b
    Examples:
      estiba node join --token estiba-1-... 192.0.2.10
      ESTIBA_JOIN_TOKEN=$(cat token) estiba node join 192.0.2.10
    """
    from controlplane.cli.setup import membership

    if not token:
        raise click.UsageError("a token is needed, by --token or in ESTIBA_JOIN_TOKEN")
    membership.join(token, address, advertise=advertise_addr, hostname=hostname)


@command.command()
def leave() -> None:
    """Have this machine be no node any more: stop its containers, remove keys and configuration.

    The cluster goes on expecting it until it is told to forget the node.

    \b
    Examples:
      estiba node leave
      estiba node rm n3
    """
    from controlplane.cli.setup import membership

    membership.leave()
