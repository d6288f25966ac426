"""What containers wrote: gathered from the nodes that have it, as it arrives.

Every node is read on a stream of its own, all at once; what cannot be had becomes a
warning among the lines.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import aclosing

from controlplane.api import hearsay, lookup
from controlplane.api.pipe import Pipe
from controlplane.api.streams import Streams
from controlplane.errors import CompactedError, EstibaError, InvalidError, UnavailableError
from controlplane.store.cache import Cache
from estiba import wire
from estiba.v1 import control_pb2 as control
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

# Responses of all nodes together that wait for the caller to read them.
RESPONSES_AHEAD = 8
# Who follows a node that has broken off is connected again after this long.
AGAIN_AFTER_S = 1.0

Marks = dict[tuple[str, bool], float]


class Logs:
    def __init__(self, cache: Cache, streams: Streams) -> None:
        self._cache = cache
        self._streams = streams

    async def read(
        self, request: control.LogsRequest
    ) -> AsyncGenerator[control.LogsResponse, None]:
        """Yield lines, and warnings; following, also those of tasks that are placed later.

        Raises:
            InvalidError: it is not said whose logs.
            NotFoundError: there is no such task or service.
        """
        await self._cache.catch_up()
        reading = _Reading(self._cache, self._streams, request)
        gathering = asyncio.create_task(reading.run(), name="logs")
        try:
            async with aclosing(reading.pipe.items()) as responses:
                async for response in responses:
                    yield response
        finally:
            gathering.cancel()
            await asyncio.wait([gathering])
        gathering.result()


class _Reading:
    """One request for logs."""

    def __init__(self, cache: Cache, streams: Streams, request: control.LogsRequest) -> None:
        self.pipe: Pipe[control.LogsResponse] = Pipe(RESPONSES_AHEAD)
        self._cache = cache
        self._streams = streams
        self._request = request
        self._covered: set[str] = set()
        self._service_id = ""
        self._task_id = ""
        match request.WhichOneof("of"):
            case "service":
                self._service_id = lookup.service(cache, request.service).metadata.id
            case "task":
                self._task_id = lookup.task(cache, request.task).metadata.id
            case _:
                raise InvalidError([("", "say whose logs: a task's or a service's")])

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                seen = self._cache.revision
                self._start(group, self._tasks())
                if self._request.follow:
                    await self._follow(group, seen)
        finally:
            self.pipe.close()

    def _tasks(self) -> list[v1.Task]:
        if self._service_id:
            return self._cache.tasks_of(self._service_id)
        task = self._cache.tasks.get(self._task_id)
        return [task] if task is not None else []

    def _start(self, group: asyncio.TaskGroup, tasks: Iterable[v1.Task]) -> None:
        """Read tasks that are placed and not read yet: one stream for each of their nodes."""
        by_node: defaultdict[str, list[str]] = defaultdict(list)
        for task in tasks:
            if task.node_id and task.metadata.id not in self._covered:
                self._covered.add(task.metadata.id)
                by_node[task.node_id].append(task.metadata.id)
        for node_id, task_ids in sorted(by_node.items()):
            group.create_task(self._read(node_id, task_ids), name=f"logs.{node_id}")

    async def _follow(self, group: asyncio.TaskGroup, seen: int) -> None:
        """Start reading tasks as they are placed, until there is nothing left to follow."""
        try:
            async with aclosing(self._cache.changes(seen)) as batches:
                async for batch in batches:
                    if any(change.kind in {"task", "service"} for change in batch.changes):
                        tasks = self._tasks()
                        self._start(group, tasks)
                        if not tasks and self._service_id not in self._cache.services:
                            return
        except CompactedError as gap:
            raise UnavailableError(f"the logs fell behind the changes: {gap}") from gap

    # ------------------------------------------------------------------ one node

    async def _read(self, node_id: str, task_ids: list[str]) -> None:
        marks: Marks = {}
        warned = False
        while True:
            try:
                await self._read_once(node_id, task_ids, marks)
            except EstibaError as error:
                if not warned:
                    await self.pipe.put(control.LogsResponse(warnings=[str(error)]))
                warned = True
            else:
                return
            if not self._request.follow:
                return
            await asyncio.sleep(AGAIN_AFTER_S)
            if not any(task_id in self._cache.tasks for task_id in task_ids):
                return

    async def _read_once(self, node_id: str, task_ids: list[str], marks: Marks) -> None:
        """Read until the node has said everything. ``marks``: the last lines seen so far."""
        purpose = dispatch.ReadLogs(
            task_ids=task_ids, follow=self._request.follow, tail=self._request.tail
        )
        if self._request.HasField("since"):
            purpose.since.CopyFrom(self._request.since)
        if marks:
            purpose.tail = 0
            purpose.since.CopyFrom(wire.timestamp(min(marks.values())))
        already, asked = dict(marks), frozenset(task_ids)
        opened = self._streams.open(node_id, dispatch.Purpose(logs=purpose))
        async with opened as frames, aclosing(frames):
            async for frame in frames:
                if frame.HasField("logs"):
                    response = self._response(frame.logs, node_id, asked, already, marks)
                    if response.lines or response.warnings:
                        await self.pipe.put(response)
                elif frame.HasField("end") and frame.end.error:
                    warning = f"node {self._node_name(node_id)}: {frame.end.error}"
                    await self.pipe.put(control.LogsResponse(warnings=[warning]))

    def _response(
        self,
        said: control.LogsResponse,
        node_id: str,
        asked: Collection[str],
        already: Marks,
        marks: Marks,
    ) -> control.LogsResponse:
        """Return what is new in a node's frame, with the names that only we know."""
        response = control.LogsResponse(warnings=said.warnings)
        for line in said.lines:
            if line.task_id not in asked or not hearsay.is_time(line.at):
                # A node has nothing to say for the tasks of others.
                continue
            source = (line.task_id, line.stderr)
            at_s = wire.seconds(line.at)
            if at_s <= already.get(source, 0.0):
                continue
            marks[source] = at_s
            line.node_id = node_id
            task = self._cache.tasks.get(line.task_id)
            if task is not None:
                line.task_name = task.metadata.name
            response.lines.append(line)
        return response

    def _node_name(self, node_id: str) -> str:
        node = self._cache.nodes.get(node_id)
        return node.metadata.name if node is not None else node_id
