"""Writes what sessions observed, for all nodes together.

Each write holds only while the session's presence key has its value: once another
session, or the end of the lease, has replaced it, the write is refused and the session
ends. Everything is gathered for a moment and stored in few transactions; of several
values for one key the last one is written.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.errors import ConflictError, OutcomeUnknownError, UnavailableError
from controlplane.store import keys
from controlplane.store.protocol import HasValue, Store, Write
from estiba.kit.backoff import Backoff
from estiba.kit.clock import Clock

log = logging.getLogger(__name__)

# Tuples in one transaction: etcd allows 128 writes and 128 conditions, one for every node here,
# and the longest tuple has two writes.
MOST_WRITES = 60


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

    def depose(self) -> None: ...


@dataclass(slots=True)
class _Waiting:
    holder: Holder
    writes: dict[str, tuple[Write, ...]] = field(default_factory=dict)
    then: list[Callable[[], None]] = field(default_factory=list)


class PresenceWriter:
    def __init__(self, store: Store, clock: Clock, backoff: Backoff, *, flush_after_s: float):
        self._store = store
        self._clock = clock
        self._backoff = backoff
        self._flush_after_s = flush_after_s
        self._waiting: dict[bytes, _Waiting] = {}
        self._work = asyncio.Event()

    def put(
        self, holder: Holder, writes: Iterable[tuple[Write, ...]], then: Callable[[], None]
    ) -> None:
        """Store ``writes`` soon, and call ``then`` when they and all before them are stored.

        Writes of one tuple are stored in one transaction. ``then`` is never called when
        the holder turns out to be deposed.
        """
        waiting = self._waiting.setdefault(holder.presence, _Waiting(holder))
        waiting.writes.update((together[0].key, together) for together in writes)
        waiting.then.append(then)
        self._work.set()

    async def run(self) -> None:
        while True:
            await self._work.wait()
            await self._clock.sleep(self._flush_after_s)
            self._work.clear()
            taken, self._waiting = self._waiting, {}
            await self._store_all(list(taken.values()))

    async def _store_all(self, waiting: list[_Waiting]) -> None:
        left = deque((each, writes) for each in waiting for writes in each.writes.values())
        while left:
            await self._commit(_take_chunk(left))
        for each in waiting:
            if not each.holder.deposed:
                for then in each.then:
                    then()

    async def _commit(self, chunk: list[tuple[_Waiting, tuple[Write, ...]]]) -> None:
        while True:
            chunk = [(each, writes) for each, writes in chunk if not each.holder.deposed]
            if not chunk:
                return
            holders = {each.holder.node_id: each.holder for each, _ in chunk}
            try:
                await self._store.commit(
                    [
                        HasValue(keys.presence(node), held.presence)
                        for node, held in holders.items()
                    ],
                    [write for _, writes in chunk for write in writes],
                )
            except ConflictError as refused:
                holders[refused.key.removeprefix(keys.PRESENCES)].depose()
            except (UnavailableError, OutcomeUnknownError) as error:
                delay_s = self._backoff.next_s()
                log.warning("reports wait %.1f s for the store: %s", delay_s, error)
                await self._clock.sleep(delay_s)
            else:
                self._backoff.reset()
                return


def _take_chunk(
    left: deque[tuple[_Waiting, tuple[Write, ...]]],
) -> list[tuple[_Waiting, tuple[Write, ...]]]:
    """Take what one transaction may hold: of two sessions of one node only one can be right."""
    chunk: list[tuple[_Waiting, tuple[Write, ...]]] = []
    holders: dict[str, Holder] = {}
    for _ in range(min(MOST_WRITES, len(left))):
        each, writes = left.popleft()
        if holders.setdefault(each.holder.node_id, each.holder) is each.holder:
            chunk.append((each, writes))
        else:
            left.append((each, writes))
    return chunk
