"""This member's view of the store: all objects, in memory, as of one revision.

Fed by one list and one watch, which every loop, session and request shares. It lags
behind the store, never behind itself: whoever has to see a write waits for its revision.
"""

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from controlplane.errors import CompactedError, UnavailableError
from controlplane.store import keys
from controlplane.store.mirror import CacheChange, Mirror
from controlplane.store.protocol import Batch, Entry, Event, Store
from estiba.kit.clock import Clock
from estiba.model import DEFAULT_NAMESPACE
from estiba.v1 import types_pb2 as v1

__all__ = ["Cache", "CacheBatch", "CacheChange"]

log = logging.getLogger(__name__)

MOST_CHANGES_KEPT = 20_000
RETRY_DELAY_S = 0.5
RELIST_EVERY_S = 600.0
# Others get their turn after this many revisions of a long batch: a few milliseconds.
REVISIONS_IN_ONE_GO = 100


@dataclass(frozen=True, slots=True)
class CacheBatch:
    """All changes of one revision. Without changes: a bookmark."""

    revision: int
    changes: tuple[CacheChange, ...]


class Cache:
    """Belongs to one event loop; `run` keeps it fresh."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        most_changes_kept: int = MOST_CHANGES_KEPT,
        relist_every_s: float = RELIST_EVERY_S,
    ) -> None:
        self.revision = 0
        """All changes up to here are in; 0 before the first list."""
        self.ready = asyncio.Event()
        """Set when everything has been listed for the first time."""
        self._store = store
        self._clock = clock
        self._most_changes_kept = most_changes_kept
        self._relist_every_s = relist_every_s
        self._mirror = Mirror()
        self._history: deque[CacheBatch] = deque()
        self._changes_kept = 0
        self._forgotten = 0
        """Changes up to this revision are not in the history."""
        self._histories = 0
        """How often the history began anew."""
        self._news = asyncio.Event()

    @property
    def services(self) -> Mapping[str, v1.Service]:
        return self._mirror.services

    @property
    def templates(self) -> Mapping[tuple[str, int], v1.Template]:
        return self._mirror.templates

    @property
    def tasks(self) -> Mapping[str, v1.Task]:
        """With the agents' status in them; metadata.revision is the later of both keys'."""
        return self._mirror.tasks

    @property
    def nodes(self) -> Mapping[str, v1.Node]:
        """With their status: ready, down or unknown, as presence and record say."""
        return self._mirror.nodes

    @property
    def presences(self) -> Mapping[str, v1.Presence]:
        return self._mirror.presences

    @property
    def members(self) -> Mapping[str, v1.Member]:
        return self._mirror.members

    @property
    def blocks(self) -> Mapping[tuple[str, str], v1.NodeBlock]:
        """By network and node."""
        return self._mirror.blocks

    @property
    def removed_nodes(self) -> set[str]:
        return self._mirror.removed_nodes

    @property
    def cluster(self) -> v1.Cluster | None:
        return self._mirror.cluster

    @property
    def leader_member_id(self) -> str:
        """ "" while there is no leader."""
        return self._mirror.leader_member_id

    def service_named(self, name: str, *, namespace: str = DEFAULT_NAMESPACE) -> v1.Service | None:
        for id_ in self._mirror.services_by_name.ids(f"{namespace}/{name}"):
            return self._mirror.services[id_]
        return None

    def node_named(self, name: str, *, namespace: str = DEFAULT_NAMESPACE) -> v1.Node | None:
        """Of several nodes with one host name, the first that came."""
        for id_ in self._mirror.nodes_by_name.ids(f"{namespace}/{name}"):
            return self._mirror.nodes[id_]
        return None

    def tasks_of(self, service_id: str) -> list[v1.Task]:
        tasks = self._mirror.tasks
        return [tasks[id_] for id_ in self._mirror.tasks_by_service.ids(service_id)]

    def tasks_on(self, node_id: str) -> list[v1.Task]:
        tasks = self._mirror.tasks
        return [tasks[id_] for id_ in self._mirror.tasks_by_node.ids(node_id)]

    def key_revision(self, key: str) -> int:
        """Return the mod_revision of the key as last seen, for `Unchanged`; 0: it is absent."""
        return self._mirror.key_revisions.get(key, 0)

    async def run(self) -> None:
        """List and watch until cancelled.

        List again when history is gone, and now and then without a reason: what a watch
        has kept from us would never be noticed otherwise.
        """
        while True:
            try:
                await self._list()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._relist_every_s):
                        await self._follow()
            except CompactedError as gap:
                log.info("listing everything again: %s", gap)
            except UnavailableError as error:
                log.warning("cannot list the store, trying again: %s", error)
                await self._clock.sleep(RETRY_DELAY_S)

    async def _follow(self) -> None:
        async with aclosing(self._store.watch(keys.ROOT, after=self.revision)) as batches:
            async for batch in batches:
                await self._take(batch)

    async def wait_for(self, revision: int, *, timeout_s: float) -> None:
        """Return when everything up to ``revision`` is in.

        Raises:
            UnavailableError: it has not come in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self.revision < revision:
                    await self._news.wait()
        except TimeoutError:
            raise UnavailableError(
                f"this member has seen the store up to revision {self.revision},"
                f" and not {revision} within {timeout_s:g} s"
            ) from None

    async def catch_up(self, *, timeout_s: float = 5.0) -> None:
        """Return when everything is in that was written before the call."""
        await self.wait_for(await self._store.revision(), timeout_s=timeout_s)

    async def changes(self, after: int) -> AsyncGenerator[CacheBatch, None]:
        """Yield every change after revision ``after``, one revision at a time, until closed.

        Raises:
            CompactedError: some of them are not kept any more.
        """
        histories = self._histories
        while True:
            if after < self._forgotten or histories != self._histories:
                raise CompactedError(after + 1, oldest=self._forgotten + 1)
            news = self._news
            batches = self._since(after)
            for batch in batches:
                yield batch
                after = batch.revision
            if batches:
                continue
            if self.revision > after:
                after = self.revision
                yield CacheBatch(after, ())
            else:
                await news.wait()

    def _since(self, after: int) -> list[CacheBatch]:
        first = bisect_right(self._history, after, key=attrgetter("revision"))
        return [self._history[index] for index in range(first, len(self._history))]

    async def _list(self) -> None:
        """Bring the mirror to the store's current revision, whatever it holds now.

        The first time, pages go in as they come, and nobody is told. Later only what
        differs goes in, as one batch: who follows the changes sees no gap.
        """
        begun = self.ready.is_set()
        page = await self._store.list(keys.ROOT)
        revision = page.revision
        listed: set[str] = set()
        differing: list[Event] = []
        while True:
            listed.update(entry.key for entry in page.entries)
            differing += self._differing(page.entries)
            if not begun:
                self._mirror.apply(differing, now_s=self._clock.now())
                differing.clear()
            if not page.next_key:
                break
            page = await self._store.list(keys.ROOT, start=page.next_key, at=revision)
        gone = self._mirror.key_revisions.keys() - listed
        missed = [event.key for event in differing if event.revision <= self.revision]
        if missed:
            log.error("the watch has missed %d changes, such as of %s", len(missed), missed[0])
        differing += [Event(key, None, revision) for key in sorted(gone)]
        changes = self._mirror.apply(differing, now_s=self._clock.now())
        if begun and not missed and (revision > self.revision or not changes):
            self._advance(revision, changes)
            return
        self._begin_history(after=revision)
        if not begun:
            self.ready.set()
            log.info("listed the store at revision %d: %d keys", revision, len(listed))

    def _begin_history(self, *, after: int) -> None:
        """Send all followers to look anew: they could not be told what has just changed."""
        self._forgotten = after
        self._history.clear()
        self._changes_kept = 0
        self._histories += 1
        self._advance(after, ())

    def _differing(self, entries: Iterable[Entry]) -> list[Event]:
        known: Callable[[str], int | None] = self._mirror.key_revisions.get
        return [
            Event(entry.key, entry, entry.mod_revision)
            for entry in entries
            if known(entry.key) != entry.mod_revision
        ]

    async def _take(self, batch: Batch) -> None:
        by_revision = groupby(batch.events, key=attrgetter("revision"))
        for number, (revision, events) in enumerate(by_revision, start=1):
            self._advance(revision, self._mirror.apply(events, now_s=self._clock.now()))
            if number % REVISIONS_IN_ONE_GO == 0:
                await asyncio.sleep(0)
        self._advance(batch.revision, ())

    def _advance(self, revision: int, changes: Iterable[CacheChange]) -> None:
        self.revision = max(self.revision, revision)
        kept = tuple(changes)
        if kept:
            self._history.append(CacheBatch(revision, kept))
            self._changes_kept += len(kept)
        # The newest batch stays, however large it is.
        while self._changes_kept > self._most_changes_kept and len(self._history) > 1:
            dropped = self._history.popleft()
            self._changes_kept -= len(dropped.changes)
            self._forgotten = dropped.revision
        self._news.set()
        self._news = asyncio.Event()
