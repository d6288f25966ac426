"""Choose the member that runs the loops, and say so in every write it makes.

Leading is holding the leader key, made if absent and attached to the member's lease. A
lease is not a lock: what keeps a deposed leader from writing is the `Fence` in each of
its transactions. The rest only makes sure that terms of office end soon.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from controlplane.errors import (
    CompactedError,
    ConflictError,
    DeposedError,
    LeaseEndedError,
    OutcomeUnknownError,
    StoreError,
    UnavailableError,
)
from controlplane.store import codec, keys
from controlplane.store.lease import Lease, LeaseKeeper
from controlplane.store.protocol import Delete, Entry, Fence, Put, Store, Unchanged
from estiba.kit.clock import Clock
from estiba.kit.race import race
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

RETRY_DELAY_S = 0.2
RESIGN_TIMEOUT_S = 1.0

Lead = Callable[[Fence], Awaitable[None]]


class Election:
    def __init__(self, store: Store, keeper: LeaseKeeper, *, member_id: str, clock: Clock) -> None:
        self._store = store
        self._keeper = keeper
        self._member_id = member_id
        self._clock = clock
        self.fence: Fence | None = None
        """Of the current term of office; None while another member leads."""

    async def run(self, lead: Lead) -> None:
        """Campaign, lead, and campaign again, until cancelled.

        ``lead`` is cancelled when the lease is lost, when the leader key is not ours any
        more, or when this is cancelled; in the last case the key is deleted, so that the
        next leader need not wait. A DeposedError from ``lead`` ends the term; any other
        error ends `run`.
        """
        while True:
            lease = await self._keeper.acquired()
            fence = await race(self._win(lease), _lost(lease))
            if fence is not None:
                await self._serve(lease, fence, lead)

    async def _win(self, lease: Lease) -> Fence:
        """Return when the leader key is ours."""
        while True:
            try:
                entry, revision = await self._read()
                if entry is not None and entry.lease == lease.id:
                    # Made by a write whose answer was lost.
                    return Fence(entry.create_revision)
                if entry is not None:
                    await self._until_changed(after=revision)
                    continue
                return Fence(
                    await self._store.commit(
                        [Unchanged(keys.LEADER, 0)],
                        [Put(keys.LEADER, self._member_id.encode(), lease.id)],
                    )
                )
            except (ConflictError, CompactedError):
                continue
            except (UnavailableError, OutcomeUnknownError, LeaseEndedError) as error:
                log.info("campaigning on: %s", error)
                await self._clock.sleep(RETRY_DELAY_S)

    async def _serve(self, lease: Lease, fence: Fence, lead: Lead) -> None:
        """One term of office."""
        log.info("%s leads since revision %d", self._member_id, fence.create_revision)
        self.fence = fence
        try:
            await race(_lead(lead, fence), _lost(lease), self._until_deposed(fence))
        finally:
            self.fence = None
            log.info("%s does not lead any more", self._member_id)
            await self._resign(fence)

    async def _until_deposed(self, fence: Fence) -> None:
        """Return when the leader key is not the one of this term."""
        while True:
            try:
                entry, revision = await self._read()
                if entry is None or entry.create_revision != fence.create_revision:
                    return
                await self._until_changed(after=revision)
            except CompactedError:
                continue
            except UnavailableError:
                await self._clock.sleep(RETRY_DELAY_S)

    async def _read(self) -> tuple[Entry | None, int]:
        """Return the leader key, and the revision at which it was read."""
        page = await self._store.list(keys.LEADER)
        entry = next((entry for entry in page.entries if entry.key == keys.LEADER), None)
        return entry, page.revision

    async def _until_changed(self, *, after: int) -> None:
        async with aclosing(self._store.watch(keys.LEADER, after=after)) as batches:
            async for batch in batches:
                if any(event.key == keys.LEADER for event in batch.events):
                    return

    async def _resign(self, fence: Fence) -> None:
        # If it fails, the key goes with the lease.
        try:
            async with asyncio.timeout(RESIGN_TIMEOUT_S):
                await self._store.commit([fence], [Delete(keys.LEADER)])
        except (StoreError, TimeoutError) as error:
            log.info("%s could not resign: %s", self._member_id, str(error) or "no answer")


async def keep_registered(
    store: Store, keeper: LeaseKeeper, member: v1.Member, *, clock: Clock
) -> None:
    """Keep this member's key under each lease it holds, until cancelled."""
    put = codec.encode(member)
    while True:
        lease = await keeper.acquired()
        try:
            await store.commit([], [Put(keys.member(member.id), put, lease.id)])
        except (UnavailableError, OutcomeUnknownError, LeaseEndedError) as error:
            log.info("member %s is not registered yet: %s", member.id, error)
            await clock.sleep(RETRY_DELAY_S)
            continue
        await lease.lost.wait()


async def _lead(lead: Lead, fence: Fence) -> None:
    try:
        await lead(fence)
    except* DeposedError as deposed:
        log.info("term of office ended: %s", deposed.exceptions[0])


async def _lost(lease: Lease) -> None:
    await lease.lost.wait()
