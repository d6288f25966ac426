"""Writes what sessions observed, for all nodes together.

Each write holds only while the session's presence key has its value: once another
session, or the end of the lease, has replaced it, the write is refused and the session
ends. What comes alone is stored at once; what follows soon is gathered for a moment and
stored in few transactions, and of several values for one key the last one is written.

A status that got no answer is not sent again under the same session: the first one may
still be on its way to the store, and arrive after a newer one. The session ends instead,
and the agent reports again under the next one, whose presence key refuses the stray.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.errors import ConflictError, OutcomeUnknownError, UnavailableError
from controlplane.store import keys
from controlplane.store.protocol import Delete, HasValue, Put, Store, Write
from estiba.kit.backoff import Backoff
from estiba.kit.clock import Clock

log = logging.getLogger(__name__)

# In one transaction: etcd allows 128 writes and 128 conditions, one for every node here, and what
# lets go of a node are two writes.
MOST_TOGETHER = 60


class Holder(Protocol):
    """A session, as far as its presence key is concerned."""

    @property
    def node_id(self) -> str: ...

    @property
    def presence(self) -> bytes:
        """The value that its presence key has as long as it holds the node."""

    @property
    def deposed(self) -> bool:
        """The presence key is known not to be ours any more."""

    @property
    def suspended(self) -> bool:
        """A write got no answer: nothing more is reported under this session."""

    def depose(self) -> None: ...

    def suspend(self) -> None: ...


@dataclass(slots=True)
class _Waiting:
    holder: Holder
    statuses: dict[str, Put] = field(default_factory=dict)
    release: Put | None = None
    then: list[Callable[[], None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is stored together or not at all."""

    holder: Holder
    writes: tuple[Write, ...]
    release: bool

    @property
    def due(self) -> bool:
        # To let go is refused once it has happened, so it may be sent again.
        return not self.holder.deposed and (self.release or not self.holder.suspended)


class PresenceWriter:
    def __init__(self, store: Store, clock: Clock, backoff: Backoff, *, flush_after_s: float):
        self._store = store
        self._clock = clock
        self._backoff = backoff
        self._flush_after_s = flush_after_s
        self._waiting: dict[bytes, _Waiting] = {}
        self._work = asyncio.Event()

    def put(self, holder: Holder, statuses: Iterable[Put], then: Callable[[], None]) -> None:
        """Store ``statuses`` soon, and call ``then`` when they and all before them are stored.

        ``then`` is never called when the holder turns out to be deposed.
        """
        waiting = self._waiting.setdefault(holder.presence, _Waiting(holder))
        waiting.statuses.update((status.key, status) for status in statuses)
        waiting.then.append(then)
        self._work.set()

    def release(self, holder: Holder, record: Put, then: Callable[[], None]) -> None:
        """Let go of the node: delete its presence key and store ``record``, as one."""
        waiting = self._waiting.setdefault(holder.presence, _Waiting(holder))
        waiting.release = record
        waiting.then.append(then)
        self._work.set()

    async def run(self) -> None:
        next_s = self._clock.monotonic()
        while True:
            await self._work.wait()
            await self._clock.sleep(max(0.0, next_s - self._clock.monotonic()))
            next_s = self._clock.monotonic() + self._flush_after_s
            self._work.clear()
            taken, self._waiting = self._waiting, {}
            await self._store_all(list(taken.values()))

    async def _store_all(self, waiting: list[_Waiting]) -> None:
        left = deque(unit for each in waiting for unit in _units(each))
        while left:
            await self._commit(_take_chunk(left))
        for each in waiting:
            if not each.holder.deposed:
                for then in each.then:
                    then()

    async def _commit(self, chunk: list[_Unit]) -> None:
        while chunk := [unit for unit in chunk if unit.due]:
            holders = {unit.holder.node_id: unit.holder for unit in chunk}
            try:
                await self._store.commit(
                    [
                        HasValue(keys.presence(node), each.presence)
                        for node, each in holders.items()
                    ],
                    [write for unit in chunk for write in unit.writes],
                )
            except ConflictError as refused:
                holders[refused.key.removeprefix(keys.PRESENCES)].depose()
            except OutcomeUnknownError as error:
                log.warning("asking %d node(s) to report again: %s", len(holders), error)
                for holder in holders.values():
                    holder.suspend()
                await self._clock.sleep(self._backoff.next_s())
            except UnavailableError as error:
                delay_s = self._backoff.next_s()
                log.warning("reports wait %.1f s for the store: %s", delay_s, error)
                await self._clock.sleep(delay_s)
            else:
                self._backoff.reset()
                return


def _units(waiting: _Waiting) -> list[_Unit]:
    units = [_Unit(waiting.holder, (put,), release=False) for put in waiting.statuses.values()]
    if waiting.release is not None:
        delete = Delete(keys.presence(waiting.holder.node_id))
        units.append(_Unit(waiting.holder, (delete, waiting.release), release=True))
    return units


def _take_chunk(left: deque[_Unit]) -> list[_Unit]:
    """Take what one transaction may hold: of two sessions of one node only one can be right."""
    chunk: list[_Unit] = []
    holders: dict[str, Holder] = {}
    for _ in range(min(MOST_TOGETHER, len(left))):
        unit = left.popleft()
        if holders.setdefault(unit.holder.node_id, unit.holder) is unit.holder:
            chunk.append(unit)
        else:
            left.append(unit)
    return chunk
