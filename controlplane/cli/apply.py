"""`estiba apply`: make the cluster's services what a file says."""

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlplane.cli import options
from controlplane.cli.context import Session, pass_session
from controlplane.cli.errors import CliError
from controlplane.cli.units import MILLION

if TYPE_CHECKING:
    from controlplane.cli.connection import Connection
    from estiba.v1 import types_pb2


@click.command()
@click.option("-f", "--file", required=True, metavar="FILE", help="YAML or JSON; - reads it here.")
@options.waiting
@pass_session
def command(session: Session, file: str, timeout: int, *, detach: bool) -> None:
    """Create or change services as FILE says, and wait until they run.

    FILE holds the API's Service messages in JSON form, written as YAML or JSON; several
    documents are separated by ---. Services it does not mention are left alone. Prints for
    each whether it was created, changed or unchanged.

    What `estiba service inspect` prints may be edited and applied. Its metadata.revision says
    what it is based on: if somebody changed the service since, it is refused. Without one,
    FILE wins.

    \b
    Examples:
      estiba apply -f web.yaml
      estiba service inspect web > web.json; vi web.json; estiba apply -f web.json
      cat web.yaml api.yaml | estiba apply -f -
    """
    from controlplane.cli import manifest, progress
    from controlplane.cli.connection import RefusedError

    try:
        wanted = manifest.read(_read(file))
    except ValueError as error:
        raise CliError(f"{file}: {error}") from None
    applied = []
    for service in wanted:
        name = service.metadata.name
        try:
            outcome, stored = _apply(session.connection, service)
        except RefusedError as refusal:
            raise CliError(f"{file}: service {name}: {refusal}") from None
        # At once: what is stored stays, whatever becomes of the next one.
        click.echo(f"{name} {outcome}")
        applied.append(stored)
    if not detach:
        progress.wait(session.connection, applied, timeout_s=timeout / MILLION)


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CliError(f"cannot read {file}: it is not UTF-8 text") from None


def _apply(
    connection: "Connection", wanted: "types_pb2.Service"
) -> tuple[str, "types_pb2.Service"]:
    """Create or change one service; return what was done and what is stored now."""
    import grpc

    from controlplane.cli import listing
    from controlplane.cli.connection import RefusedError
    from estiba.v1 import control_pb2

    def write() -> tuple[str, "types_pb2.Service"]:
        try:
            present = listing.service(connection, wanted.metadata.name)
        except RefusedError as refusal:
            if refusal.code is not grpc.StatusCode.NOT_FOUND:
                raise
            return "created", _create(connection, wanted)
        if present.spec == wanted.spec and present.metadata.labels == wanted.metadata.labels:
            return "unchanged", present
        based_on = wanted.metadata.revision
        if based_on not in (0, present.metadata.revision):
            raise CliError(
                f"service {present.metadata.name} has changed since metadata.revision {based_on}, "
                f"which the file is based on: it is at {present.metadata.revision}; read it again, "
                "or leave metadata.revision out"
            )
        request = control_pb2.UpdateServiceRequest(
            service=present.metadata.id,
            spec=wanted.spec,
            labels=dict(wanted.metadata.labels),
            read_at=present.metadata.revision,
        )
        stored = connection.call(lambda stub: stub.UpdateService, request)
        same = stored.metadata.generation == present.metadata.generation
        return ("unchanged" if same else "changed"), stored

    return listing.change(write)


def _create(connection: "Connection", wanted: "types_pb2.Service") -> "types_pb2.Service":
    from estiba.v1 import control_pb2, types_pb2

    service = types_pb2.Service(spec=wanted.spec)
    service.metadata.id = secrets.token_hex(8)
    service.metadata.name = wanted.metadata.name
    service.metadata.labels.update(wanted.metadata.labels)
    request = control_pb2.CreateServiceRequest(service=service)
    return connection.call(lambda stub: stub.CreateService, request)
