"""Changes as users see them: from this member's view, whole revisions, in order."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from controlplane.api import lookup
from controlplane.api.ticking import with_ticks
from controlplane.api.writing import SEEN_WITHIN_S
from controlplane.errors import InvalidError
from controlplane.store.cache import Cache, CacheChange
from estiba.kit.clock import Clock
from estiba.v1 import control_pb2 as control
from estiba.v1 import types_pb2 as v1

# Without changes a watcher hears this often how far it has come.
BOOKMARK_EVERY_S = 5.0

_KINDS: dict[control.Kind.ValueType, str] = {
    control.KIND_SERVICE: "service",
    control.KIND_TASK: "task",
    control.KIND_NODE: "node",
}


class Watches:
    def __init__(self, cache: Cache, clock: Clock) -> None:
        self._cache = cache
        self._clock = clock

    async def watch(
        self, request: control.WatchRequest
    ) -> AsyncGenerator[control.WatchResponse, None]:
        """Yield changes after the revision asked for, from now on if there is none.

        Raises:
            CompactedError: they are not kept any more.
            InvalidError: a kind is none that can be watched.
            NotFoundError: the service asked for does not exist.
        """
        unknown = [kind for kind in request.kinds if kind not in _KINDS]
        if unknown:
            raise InvalidError([("kinds", f"{unknown[0]} is no kind that can be watched")])
        await self._cache.catch_up()
        await self._cache.wait_for(request.after, timeout_s=SEEN_WITHIN_S)
        wanted = _Filter(self._cache, request)
        after = request.after or self._cache.revision
        # At once, so that whoever watches from now on knows where to resume.
        yield control.WatchResponse(revision=after)
        told_at_s = self._clock.monotonic()
        changes = with_ticks(self._cache.changes(after), every_s=BOOKMARK_EVERY_S)
        async with aclosing(changes) as batches:
            async for batch in batches:
                shown: list[control.Change] = []
                if batch is not None:
                    after = batch.revision
                    shown = [wanted.shown(each) for each in batch.changes if wanted.takes(each)]
                now_s = self._clock.monotonic()
                if shown or now_s - told_at_s >= BOOKMARK_EVERY_S:
                    told_at_s = now_s
                    yield control.WatchResponse(revision=after, changes=shown)


class _Filter:
    """What one watcher wants to see."""

    def __init__(self, cache: Cache, request: control.WatchRequest) -> None:
        self._cache = cache
        self._kinds = {_KINDS[kind] for kind in request.kinds} or set(_KINDS.values())
        self._service_id = ""
        if request.service:
            self._service_id = lookup.service(cache, request.service).metadata.id

    def takes(self, change: CacheChange) -> bool:
        if change.kind not in self._kinds:
            return False
        if not self._service_id:
            return True
        match change.after or change.before:
            case v1.Service() as service:
                return service.metadata.id == self._service_id
            case v1.Task() as task:
                return task.service_id == self._service_id
        return False

    def shown(self, change: CacheChange) -> control.Change:
        kind = control.Change.TYPE_DELETED if change.after is None else control.Change.TYPE_PUT
        match change.after or change.before:
            case v1.Service() as service:
                service = lookup.with_status(self._cache, service)
                return control.Change(type=kind, service=service)
            case v1.Task() as task:
                return control.Change(type=kind, task=task)
            case v1.Node() as node:
                return control.Change(type=kind, node=node)
        raise TypeError(f"a change of kind {change.kind} has no object that can be shown")
