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

    seen = Seen()
    while True:
        try:
            for response in connection.stream(lambda stub: stub.Logs, request):
                fresh = [line for line in response.lines if seen.is_news(line)]
                del response.lines[:]
                response.lines.extend(fresh)
                yield response
        except NoAnswerError:
            if not request.follow:
                raise
            since = seen.begin_again()
            if since is not None:
                request.since.FromNanoseconds(since)
                request.tail = 0
            time.sleep(PAUSE_S)
        else:
            return


class Seen:
    """What has been shown of each task's streams, so that another member's answer adds to it."""

    def __init__(self) -> None:
        # When the last line shown was written, and how many lines of that moment were shown.
        self._last: dict[tuple[str, bool], tuple[int, int]] = {}
        # How many of those come again.
        self._again: dict[tuple[str, bool], int] = {}

    def begin_again(self) -> int | None:
        """Return since when to ask the next member; None if nothing was shown yet."""
        self._again = {key: count for key, (_, count) in self._last.items()}
        return min((at for at, _ in self._last.values()), default=None)

    def is_news(self, line: "control_pb2.LogLine") -> bool:
        """Return whether a line was not shown yet, and remember it."""
        key = (line.task_id, line.stderr)
        at = line.at.ToNanoseconds()
        last, count = self._last.get(key, (0, 0))
        if at < last:
            return False
        if at > last:
            self._last[key] = (at, 1)
            return True
        if self._again.get(key, 0):
            self._again[key] -= 1
            return False
        self._last[key] = (at, count + 1)
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
