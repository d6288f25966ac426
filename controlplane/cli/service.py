"""`estiba service`: declare, show, scale, change and remove services, and read their logs."""

import secrets
import time
from typing import Any

import click

from controlplane.cli import options, params
from controlplane.cli.context import Session, list_options, pass_session, print_json, say, warn
from controlplane.cli.groups import Verbs
from controlplane.cli.logs import logs
from controlplane.cli.units import MILLION


@click.group(cls=Verbs)
def command() -> None:
    """Declare, show and change services."""


@command.command(context_settings={"allow_interspersed_args": False})
@click.option("--name", help="Default: made from the image's name.")
@options.container
@click.option(
    "-e",
    "--env",
    type=params.VARIABLE,
    multiple=True,
    help="NAME=VALUE, or NAME to pass on yours; may be given several times.",
)
@click.option(
    "--constraint",
    multiple=True,
    help="Where it may run, such as node.labels.disk==ssd; may be given several times.",
)
@click.option("-l", "--label", type=params.PAIR, multiple=True, help="NAME=VALUE.")
@options.waiting
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_session
def create(session: Session, /, **given: Any) -> None:
    """Declare a service that runs IMAGE, and wait until all its replicas run.

    COMMAND replaces the image's default arguments; everything after IMAGE belongs to it.
    Prints the new service's id.

    \b
    Examples:
      estiba service create --name web --replicas 3 registry.estiba:5000/hello
      estiba service create --name db --limit-memory 512m --constraint node.labels.disk==ssd redis
      estiba service create --name loop busybox sh -c 'while :; do date; sleep 1; done'
      estiba service create --name app --health-http 8080/ready --health-interval 5s app:1.2
    """
    from controlplane.cli import progress, spec
    from estiba.v1 import control_pb2, types_pb2

    service = types_pb2.Service()
    # Ours, so that a create that is sent twice makes one service.
    service.metadata.id = secrets.token_hex(8)
    service.metadata.name = given["name"] or _name_for(given["image"])
    service.metadata.labels.update(dict(given["label"]))
    try:
        service.spec.CopyFrom(spec.create(given))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    made = session.connection.call(
        lambda stub: stub.CreateService, control_pb2.CreateServiceRequest(service=service)
    )
    if not given["detach"]:
        progress.wait(session.connection, [made], timeout_s=given["timeout"] / MILLION)
    click.echo(made.metadata.id)


def _name_for(image: str) -> str:
    """Make up a name: the image's last part, and something that nobody has."""
    last = image.split("@", 1)[0].rsplit("/", 1)[-1].split(":", 1)[0]
    return f"{last or 'service'}-{secrets.token_hex(3)}"


@command.command("ls")
@list_options
@pass_session
def ls(session: Session, output: str, *, quiet: bool) -> None:
    """List services, with how many of their replicas run.

    \b
    Examples:
      estiba service ls
      estiba service ls -o json
      estiba service rm $(estiba service ls -q)
    """
    from controlplane.cli import listing, render

    found = listing.services(session.connection)
    if quiet:
        for service in found:
            click.echo(service.metadata.id)
    elif output == "json":
        print_json(found)
    else:
        click.echo(render.services(found), nl=False)


@command.command()
@click.argument("services", nargs=-1, required=True, shell_complete=params.complete_services)
@list_options
@pass_session
def ps(session: Session, services: tuple[str, ...], output: str, *, quiet: bool) -> None:
    """List the tasks of SERVICES: where they are, how they are, and why.

    The newest task of each replica comes first; those before it are its history.

    \b
    Examples:
      estiba service ps web
      estiba service ps -o json web api
    """
    from controlplane.cli import listing, render

    named = {}
    for name in services:
        service = listing.service(session.connection, name)
        named[service.metadata.id] = service
    found = []
    for service_id in named:
        tasks, warnings, _ = listing.tasks(
            session.connection, service=service_id, with_usage=not quiet
        )
        warn(warnings)
        found += render.in_order(tasks)
    if quiet:
        for task in found:
            click.echo(task.metadata.id)
    elif output == "json":
        print_json(found)
    else:
        nodes, _ = listing.nodes(session.connection)
        names = {node.metadata.id: node.metadata.name for node in nodes}
        click.echo(render.tasks(found, named, names, now_s=time.time()), nl=False)


@command.command()
@click.argument("services", nargs=-1, required=True, shell_complete=params.complete_services)
@pass_session
def inspect(session: Session, services: tuple[str, ...]) -> None:
    """Print everything about SERVICES as a JSON list, which `estiba apply` takes as it is.

    \b
    Examples:
      estiba service inspect web
      estiba service inspect web > web.json
    """
    from controlplane.cli import listing

    print_json([listing.service(session.connection, name) for name in services])


@command.command()
@click.argument("wishes", nargs=-1, required=True, type=params.SCALE, metavar="SERVICE=REPLICAS...")
@options.waiting
@pass_session
def scale(
    session: Session, wishes: tuple[tuple[str, int], ...], timeout: int, *, detach: bool
) -> None:
    """Change how many replicas services have, and wait until they run.

    \b
    Example:
      estiba service scale web=5 api=2
    """
    from controlplane.cli import progress
    from estiba.v1 import control_pb2

    changed = []
    for name, replicas in wishes:
        request = control_pb2.ScaleServiceRequest(service=name, replicas=replicas)
        changed.append(session.connection.call(lambda stub: stub.ScaleService, request))
    if not detach:
        progress.wait(session.connection, changed, timeout_s=timeout / MILLION)


@command.command()
@options.container
@click.option("--image", help="Run this image from now on.")
@click.option("--args", type=params.WORDS, help="Arguments in place of the present ones.")
@click.option("--env-add", type=params.VARIABLE, multiple=True, help="NAME=VALUE, or NAME.")
@click.option("--env-rm", multiple=True, help="NAME of a variable to drop.")
@click.option("--constraint-add", multiple=True, help="Such as node.hostname!=n1.")
@click.option("--constraint-rm", multiple=True, help="A constraint to drop.")
@click.option("--label-add", type=params.PAIR, multiple=True, help="NAME=VALUE.")
@click.option("--label-rm", multiple=True, help="NAME of a label to drop.")
@click.option("--no-healthcheck", is_flag=True, help="Drop the health check.")
@options.waiting
@click.argument("service", shell_complete=params.complete_services)
@pass_session
def update(session: Session, /, service: str, **given: Any) -> None:
    """Change SERVICE, and wait until all its replicas run as it now says.

    What is not named stays as it is. A change of what runs replaces one replica at a time.

    \b
    Examples:
      estiba service update --image nginx:1.27 web
      estiba service update --env-add LEVEL=debug --env-rm OLD web
    """
    from controlplane.cli import listing, progress, spec
    from estiba.v1 import control_pb2, types_pb2

    def write() -> types_pb2.Service:
        present = listing.service(session.connection, service)
        request = control_pb2.UpdateServiceRequest(
            service=present.metadata.id,
            spec=present.spec,
            labels=spec.change_labels(
                present.metadata.labels, given["label_add"], given["label_rm"]
            ),
            read_at=present.metadata.revision,
        )
        try:
            spec.update(request.spec, given)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        return session.connection.call(lambda stub: stub.UpdateService, request)

    changed = listing.change(write)
    if not given["detach"]:
        progress.wait(session.connection, [changed], timeout_s=given["timeout"] / MILLION)


@command.command()
@click.argument("services", nargs=-1, required=True, shell_complete=params.complete_services)
@pass_session
def rm(session: Session, services: tuple[str, ...]) -> None:
    """Remove SERVICES; their tasks stop and nothing of them is kept. Prints the names.

    \b
    Example:
      estiba service rm web api
    """
    from controlplane.cli.errors import CliError
    from estiba.v1 import control_pb2

    failed = []
    for name in services:
        request = control_pb2.DeleteServiceRequest(service=name)
        try:
            session.connection.call(lambda stub: stub.DeleteService, request)
        except CliError as error:
            if len(services) == 1:
                raise
            say(str(error))
            failed.append(name)
        else:
            click.echo(name)
    if failed:
        raise CliError(f"not removed: {', '.join(failed)}")


command.add_command(logs)
