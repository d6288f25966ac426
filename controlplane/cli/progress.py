"""Wait until a service has become what was asked, and show on standard error how it goes.

A watch says when to look, a read says what is true: a watch that breaks off costs a
second, never the answer.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import click
import grpc

from controlplane.cli import listing, render
from controlplane.cli.connection import Connection, NoAnswerError, RefusedError
from controlplane.cli.context import on_terminal
from controlplane.cli.errors import CliError
from estiba.v1 import control_pb2, types_pb2

# Look at least this often, and at most that often, whatever the watch says.
LOOK_EVERY_S = 1.0
LOOK_AT_MOST_EVERY_S = 0.05
MOST_LINES = 12
# How long to wait for the watch's thread, which may be in a call; it ends with the program.
PATIENCE_S = 1.0


def wait(
    connection: Connection, services: Iterable[types_pb2.Service], *, timeout_s: float
) -> None:
    """Return when every service has converged, at its present generation or a later one.

    Raises:
        CliError: one did not within ``timeout_s``, or was removed; says why.
    """
    deadline = time.monotonic() + timeout_s
    for service in services:
        try:
            _wait_for(connection, service, deadline, timeout_s)
        except KeyboardInterrupt:
            name = service.metadata.name
            click.echo(
                f"\nestiba: the change to {name} stays; see how it goes with "
                f"`estiba service ps {name}`",
                err=True,
            )
            raise


def _wait_for(
    connection: Connection, service: types_pb2.Service, deadline: float, timeout_s: float
) -> None:
    service_id = service.metadata.id
    with _Watch(connection, service_id) as watch, _screen() as show:
        while True:
            service = _look(connection, service)
            if service.status.converged:
                # The watch may be behind the read: its tasks would still be on their way.
                show(service, ())
                return
            show(service, watch.tasks)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise CliError(_why_not(service, watch.tasks, timeout_s))
            watch.wait(min(LOOK_EVERY_S, left_s))


def _look(connection: Connection, service: types_pb2.Service) -> types_pb2.Service:
    """Read the service, from a member that knows what we wrote."""
    while True:
        try:
            found = listing.service(connection, service.metadata.id)
        except RefusedError as refusal:
            if refusal.code is grpc.StatusCode.NOT_FOUND:
                name = service.metadata.name
                raise CliError(f"service {name} was removed while it was waited for") from None
            raise
        if found.metadata.generation >= service.metadata.generation:
            return found
        time.sleep(LOOK_AT_MOST_EVERY_S)


def _why_not(service: types_pb2.Service, tasks: Iterable[types_pb2.Task], timeout_s: float) -> str:
    status = service.status
    why = status.message or next(
        (render.reason(task) for task in render.in_order(tasks) if not task.status.ready), ""
    )
    name, replicas = service.metadata.name, service.spec.replicated.replicas
    so_far = f"{status.running} of {replicas} running"
    if status.updated < status.running:
        so_far += f", {status.updated} updated"
    return (
        f"service {name} is not there after {timeout_s:g} s ({so_far})"
        f"{': ' + why if why else ''}; it goes on trying, see `estiba service ps {name}`"
    )


class _Watch:
    """Keeps a service's tasks up to date on a thread, and says when one has changed."""

    def __init__(self, connection: Connection, service_id: str) -> None:
        self._connection = connection.clone()
        self._service_id = service_id
        self._tasks: dict[str, types_pb2.Task] = {}
        self._changed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._look_s = 0.0
        self._ended = threading.Event()
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._call is not None:
            self._call.cancel()
        self._thread.join(timeout=PATIENCE_S)

    @property
    def tasks(self) -> list[types_pb2.Task]:
        return list(self._tasks.copy().values())

    def wait(self, timeout_s: float) -> None:
        """Return when something has changed, or after ``timeout_s``.

        The first change is worth a look at once; of those that follow, one look serves many.
        """
        with suppress(queue.Empty):
            self._changed.get(timeout=timeout_s)
        time.sleep(max(0.0, self._look_s - time.monotonic()))
        self._look_s = time.monotonic() + LOOK_AT_MOST_EVERY_S
        while not self._changed.empty():
            self._changed.get()

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            self._connection.close()

    def _follow(self) -> None:
        after = 0
        while not self._ended.is_set():
            try:
                if after == 0:
                    found, _, after = listing.tasks(self._connection, service=self._service_id)
                    self._tasks = {task.metadata.id: task for task in found}
                    self._changed.put(None)
                for revision in self._stream(after):
                    after = revision
                    self._changed.put(None)
            except RefusedError as refusal:
                if refusal.code is not grpc.StatusCode.OUT_OF_RANGE:
                    # The service is gone, or we are done: whoever waits finds out by reading.
                    return
                after = 0
            except NoAnswerError:
                # The next member knows what came after the last revision we saw.
                self._ended.wait(LOOK_AT_MOST_EVERY_S)

    def _stream(self, after: int) -> Iterator[int]:
        """Carry changes into our view and yield the revisions they end at."""
        request = control_pb2.WatchRequest(
            kinds=[control_pb2.KIND_TASK], after=after, service=self._service_id
        )
        for response in self._connection.stream(
            lambda stub: stub.Watch, request, began=self._began
        ):
            for change in response.changes:
                if change.type == control_pb2.Change.TYPE_DELETED:
                    self._tasks.pop(change.task.metadata.id, None)
                else:
                    self._tasks[change.task.metadata.id] = change.task
            yield response.revision

    def _began(self, call: grpc.Call) -> None:
        """Keep the call for whoever ends the watch; if that was meanwhile, end it."""
        self._call = call
        if self._ended.is_set():
            call.cancel()


Show = Callable[[types_pb2.Service, Iterable[types_pb2.Task]], None]


@contextmanager
def _screen() -> Iterator[Show]:
    """Yield what shows progress: lines that change in place on a terminal, else new ones."""
    if not on_terminal():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        def show(service: types_pb2.Service, tasks: Iterable[types_pb2.Task]) -> None:
            lines = render.task_lines(service, tasks, most=MOST_LINES, now_s=time.time())
            live.update(Text("\n".join([render.progress(service), *lines])), refresh=True)

        yield show


class _Lines:
    """A line for each change, for logs and pipes."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, service: types_pb2.Service, tasks: Iterable[types_pb2.Task]) -> None:
        line = render.progress(service)
        # The same fault in one run after the other is said once.
        fault = line.partition("; run ")[0]
        if fault != self._last:
            click.echo(line, err=True)
            self._last = fault
