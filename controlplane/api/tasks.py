"""What users may ask of tasks."""

from collections.abc import Iterable

from controlplane.api import lookup
from controlplane.api.paging import read_page, read_range
from controlplane.api.usage import UsageReader
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.protocol import Entry, Store
from estiba.v1 import control_pb2 as control
from estiba.v1 import types_pb2 as v1


class Tasks:
    def __init__(self, store: Store, cache: Cache, usage: UsageReader) -> None:
        self._store = store
        self._cache = cache
        self._usage = usage

    async def get(self, request: control.GetTaskRequest) -> v1.Task:
        await self._cache.catch_up()
        task = v1.Task()
        task.CopyFrom(lookup.task(self._cache, request.task))
        if request.with_usage:
            await self._add_usage([task])
        return task

    async def list_page(self, request: control.ListTasksRequest) -> control.ListTasksResponse:
        prefix, node_id = keys.TASKS, ""
        if request.service or request.node:
            await self._cache.catch_up()
        if request.service:
            service = lookup.service(self._cache, request.service)
            # Task ids begin with their service's.
            prefix = keys.task(f"{service.metadata.id}.")
        if request.node:
            node_id = lookup.node(self._cache, request.node).metadata.id

        def parse(entry: Entry) -> v1.Task | None:
            task = v1.Task.FromString(entry.value)
            task.metadata.revision = entry.mod_revision
            return task if not node_id or task.node_id == node_id else None

        page = await read_page(
            self._store, prefix, parse, size=request.page_size, token=request.page_token
        )
        await self._add_statuses(page.items, at=page.revision)
        warnings = await self._add_usage(page.items) if request.with_usage else []
        return control.ListTasksResponse(
            tasks=page.items,
            next_page_token=page.next_token,
            revision=page.revision,
            warnings=warnings,
        )

    async def _add_statuses(self, tasks: tuple[v1.Task, ...], *, at: int) -> None:
        """Merge what the agents reported, as it was at the same revision."""
        if not tasks:
            return
        by_key = {keys.task_status(task.metadata.id): task for task in tasks}
        first, last = min(by_key), max(by_key)
        async for entry in read_range(self._store, keys.TASK_STATUSES, first, last, at=at):
            task = by_key.get(entry.key)
            if task is not None:
                task.status.CopyFrom(v1.TaskStatus.FromString(entry.value))
                task.metadata.revision = max(task.metadata.revision, entry.mod_revision)

    async def _add_usage(self, tasks: Iterable[v1.Task]) -> list[str]:
        """Ask the nodes of running tasks; return what could not be had."""
        running = [task for task in tasks if task.status.state == v1.TASK_STATE_RUNNING]
        found, warnings = await self._usage.of_nodes(task.node_id for task in running)
        for task in running:
            usage = found.get(task.node_id)
            if usage is not None and task.metadata.id in usage.tasks:
                task.usage.CopyFrom(usage.tasks[task.metadata.id])
        return warnings
