"""The store in memory: etcd's guarantees within one process, for tests and simulations.

Keeps history as etcd does (reads at a revision, compaction, watches that resume), ends
leases by the running loop's time, and goes wrong where its `Faults` say so.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from controlplane.errors import (
    CompactedError,
    LeaseEndedError,
    OutcomeUnknownError,
    UnavailableError,
)
from controlplane.store import transaction
from controlplane.store.protocol import Batch, Condition, Delete, Entry, Event, Page, Put, Write

Operation = Literal["get", "list", "commit", "watch", "revision", "grant", "renew", "revoke"]

# As etcd does for a watch that catches up.
MOST_REVISIONS_IN_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one operation; by default nothing.

    A watch with an error is cut: it resumes after what it has delivered. The outcome of
    an operation that only reads is never unknown.
    """

    delay_s: float = 0.0
    error: Literal["", "unavailable", "unknown"] = ""
    written: bool = False
    """With the outcome unknown: whether the write happened."""


class Faults(Protocol):
    def on(self, operation: Operation) -> Fault:
        """Say what goes wrong with the operation that is about to begin."""


class NoFaults:
    def on(self, operation: Operation) -> Fault:
        return _NONE


_NONE = Fault()


@dataclass(slots=True)
class _Versions:
    """What one key has held: parallel lists, oldest first. None: it was deleted then."""

    revisions: list[int] = field(default_factory=list)
    entries: list[Entry | None] = field(default_factory=list)

    def at(self, revision: int) -> Entry | None:
        index = bisect_right(self.revisions, revision) - 1
        return self.entries[index] if index >= 0 else None

    def compact(self, revision: int) -> None:
        """Drop what no read at ``revision`` or later can see."""
        index = bisect_right(self.revisions, revision) - 1
        if index >= 0 and self.entries[index] is None:
            index += 1
        if index > 0:
            del self.revisions[:index], self.entries[:index]


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    end: asyncio.TimerHandle
    keys: set[str] = field(default_factory=set)


class MemoryStore:
    """Keeps `controlplane.store.protocol.Store`. Belongs to one event loop."""

    def __init__(self, *, faults: Faults | None = None) -> None:
        self._faults: Faults = faults or NoFaults()
        self._revision = 1
        self._compacted = 0
        self._keys: list[str] = []
        self._versions: dict[str, _Versions] = {}
        self._log: list[tuple[Event, ...]] = []
        """The events of each revision from `_log_start` on."""
        self._log_start = 2
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 1
        self._changed = asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        await self._read("get")
        return self._now(key)

    async def list(self, prefix: str, *, start: str = "", limit: int = 1000, at: int = 0) -> Page:
        await self._read("list")
        revision = at or self._revision
        if revision < self._compacted or revision > self._revision:
            raise CompactedError(revision, oldest=self._compacted)
        found: list[Entry] = []
        for index in range(bisect_left(self._keys, max(start, prefix)), len(self._keys)):
            key = self._keys[index]
            if not key.startswith(prefix):
                break
            entry = self._versions[key].at(revision)
            if entry is None:
                continue
            if len(found) == limit:
                return Page(tuple(found), revision, next_key=key)
            found.append(entry)
        return Page(tuple(found), revision, next_key="")

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        transaction.check(conditions, writes)
        fault = await self._begin("commit")
        if fault.error == "unavailable":
            raise UnavailableError("the store does not answer")
        if fault.error == "unknown" and not fault.written:
            raise OutcomeUnknownError("the store did not answer a write")
        refused = transaction.refusal(conditions, self._now)
        if refused is not None:
            raise refused
        for write in writes:
            if isinstance(write, Put) and write.lease and write.lease not in self._leases:
                raise LeaseEndedError(f"lease {write.lease:x} of {write.key} has ended")
        self._apply(writes)
        if fault.error == "unknown":
            raise OutcomeUnknownError("the store did not answer a write")
        return self._revision

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        delivered = after
        while True:
            while self._revision <= delivered:
                await self._changed.wait()
            fault = await self._begin("watch")
            if delivered < self._compacted:
                raise CompactedError(delivered + 1, oldest=self._compacted)
            if fault.error:
                continue
            first = delivered + 1 - self._log_start
            revisions = self._log[max(first, 0) : first + MOST_REVISIONS_IN_BATCH]
            delivered = max(delivered, self._log_start - 1) + len(revisions)
            yield Batch(
                delivered,
                tuple(
                    event
                    for events in revisions
                    for event in events
                    if event.key.startswith(prefix)
                ),
            )

    async def revision(self) -> int:
        await self._read("revision")
        return self._revision

    async def grant(self, ttl_s: int) -> int:
        await self._read("grant")
        lease = self._next_lease
        self._next_lease += 1
        self._leases[lease] = _Lease(ttl_s, self._end_after(ttl_s, lease))
        return lease

    async def renew(self, lease: int) -> float:
        await self._read("renew")
        held = self._leases.get(lease)
        if held is None:
            return 0.0
        held.end.cancel()
        held.end = self._end_after(held.ttl_s, lease)
        return float(held.ttl_s)

    async def revoke(self, lease: int) -> None:
        await self._read("revoke")
        self._end(lease)

    async def compact(self, revision: int) -> None:
        """Forget history before ``revision``, as etcd's auto-compaction does."""
        if revision <= self._compacted or revision > self._revision:
            return
        self._compacted = revision
        del self._log[: revision + 1 - self._log_start]
        self._log_start = max(self._log_start, revision + 1)
        for key in self._keys:
            self._versions[key].compact(revision)
        self._keys = [key for key in self._keys if self._versions[key].revisions]
        self._versions = {key: self._versions[key] for key in self._keys}
        self._changed.set()
        self._changed = asyncio.Event()

    async def _begin(self, operation: Operation) -> Fault:
        fault = self._faults.on(operation)
        # Even without delay others get their turn, as they would with a server.
        await asyncio.sleep(fault.delay_s)
        return fault

    async def _read(self, operation: Operation) -> None:
        if (await self._begin(operation)).error:
            raise UnavailableError("the store does not answer")

    def _now(self, key: str) -> Entry | None:
        versions = self._versions.get(key)
        return versions.entries[-1] if versions else None

    def _apply(self, writes: Sequence[Write]) -> None:
        """Write at the next revision. What changes nothing (no such key to delete) makes none."""
        effective = [
            write for write in writes if isinstance(write, Put) or self._now(write.key) is not None
        ]
        if not effective:
            return
        self._revision += 1
        self._log.append(tuple(self._write(write) for write in effective))
        self._changed.set()
        self._changed = asyncio.Event()

    def _write(self, write: Write) -> Event:
        before = self._now(write.key)
        if before is not None and before.lease in self._leases:
            self._leases[before.lease].keys.discard(write.key)
        entry: Entry | None = None
        match write:
            case Put(key, value, lease):
                created = before.create_revision if before else self._revision
                entry = Entry(key, value, self._revision, created, lease)
                if lease:
                    self._leases[lease].keys.add(key)
            case Delete():
                pass
        versions = self._versions.get(write.key)
        if versions is None:
            versions = self._versions[write.key] = _Versions()
            insort(self._keys, write.key)
        versions.revisions.append(self._revision)
        versions.entries.append(entry)
        return Event(write.key, entry, self._revision)

    def _end_after(self, ttl_s: float, lease: int) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ttl_s, self._end, lease)

    def _end(self, lease: int) -> None:
        held = self._leases.pop(lease, None)
        if held is None:
            return
        held.end.cancel()
        self._apply([Delete(key) for key in sorted(held.keys)])
