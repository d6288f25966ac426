"""`estiba service logs`: what containers wrote, each line with the task it is from."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from controlplane.cli import params
from controlplane.cli.context import Session, pass_session, warn
from controlplane.cli.units import MILLION, parse_duration

if TYPE_CHECKING:
    from controlplane.cli.connection import Connection
    from estiba.v1 import control_pb2

PAUSE_S = 0.5
BILLION = 1_000_000_000


def _moment(text: str) -> int:
    """Read a duration before now, or a date, and return nanoseconds since the epoch."""
    try:
        if re.match(r"\d{4}-", text) is None:
            return time.time_ns() - parse_duration(text) * 1000
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no moment: write a duration such as 10m, or 2026-01-31T12:00:00Z"
        ) from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * MILLION) * 1000


MOMENT = params.Parsed("duration or date", _moment)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--tail", type=click.IntRange(min=1), help="Only the last so many lines of a task.")
@click.option("--since", type=MOMENT, help="Only what came later: 10m, or 2026-01-31T12:00:00Z.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin lines with when they were written.")
@click.argument("service", metavar="SERVICE|TASK", shell_complete=params.complete_services)
@pass_session
def logs(
    session: Session,
    service: str,
    tail: int | None,
    since: int | None,
    *,
    follow: bool,
    timestamps: bool,
) -> None:
    """Print what the containers of a service, or of one task by its id, wrote.

    What they wrote to standard error goes to standard error.

    \b
    Examples:
      estiba service logs --tail 20 -f web
      estiba service logs --since 10m -t web > web.log
    """
    from estiba.v1 import control_pb2

    request = control_pb2.LogsRequest(follow=follow, tail=tail or 0)
    if since is not None:
        request.since.FromNanoseconds(since)
    _name(session.connection, request, service)
    writer = _Writer(timestamps=timestamps)
    for response in _responses(session.connection, request):
        warn(response.warnings)
        for line in response.lines:
            writer.write(line)


def _name(connection: "Connection", request: "control_pb2.LogsRequest", name: str) -> None:
    """Put a task into the request if it is one's id, else the service of that name."""
    import grpc

    from controlplane.cli import listing
    from controlplane.cli.connection import RefusedError
    from estiba.v1 import control_pb2

    try:
        request.service = listing.service(connection, name).metadata.id
    except RefusedError as no_service:
        if no_service.code is not grpc.StatusCode.NOT_FOUND or name.count(".") != 3:
            raise
        asked = control_pb2.GetTaskRequest(task=name)
        request.task = connection.call(lambda stub: stub.GetTask, asked).metadata.id


def _responses(
    connection: "Connection", request: "control_pb2.LogsRequest"
) -> Iterator["control_pb2.LogsResponse"]:
    """Yield what is written; while following, go on at another member when one breaks off."""
    from controlplane.cli.connection import NoAnswerError

    seen: dict[str, int] = {}
    while True:
        try:
            for response in connection.stream(lambda stub: stub.Logs, request):
                fresh = [line for line in response.lines if _is_news(line, seen)]
                del response.lines[:]
                response.lines.extend(fresh)
                yield response
        except NoAnswerError:
            if not request.follow:
                raise
            if seen:
                request.since.FromNanoseconds(min(seen.values()))
                request.tail = 0
            time.sleep(PAUSE_S)
        else:
            return


def _is_news(line: "control_pb2.LogLine", seen: dict[str, int]) -> bool:
    """Return whether a task's line is later than what was seen of it, and remember it."""
    at = line.at.ToNanoseconds()
    key = f"{line.task_id} {line.stderr}"
    if at < seen.get(key, 0):
        return False
    seen[key] = at
    return True


class _Writer:
    """Joins the parts of long lines and writes whole ones, each to the stream it came from."""

    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._parts: dict[tuple[str, bool], bytes] = {}

    def write(self, line: "control_pb2.LogLine") -> None:
        key = (line.task_id, line.stderr)
        text = self._parts.pop(key, b"") + line.line
        if line.partial:
            self._parts[key] = text
            return
        at = f"{line.at.ToJsonString()} " if self._timestamps else ""
        prefix = f"{at}{line.task_name} | ".encode()
        click.echo(prefix + text, err=line.stderr)
