"""Keep this member's lease: presence, registration and leadership hang on it.

A lease counts as lost before it can have ended in the store: its time is counted from
before the request that renewed it was sent, and a tenth of it is given up. With etcd it
is renewed on a thread, so that no stall of the event loop looks like a death.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from controlplane.errors import OutcomeUnknownError, StoreError, UnavailableError
from controlplane.store.protocol import Store
from estiba.kit.clock import Clock
from estiba.kit.race import race
from estiba.kit.seldom import Seldom

log = logging.getLogger(__name__)

GIVEN_UP = 0.1
RETRY_DELAY_S = 0.2
REVOKE_TIMEOUT_S = 1.0


class LeaseClient(Protocol):
    """Renews leases from a thread of its own, such as `controlplane.store.etcd`'s."""

    def renew(self, lease: int, *, timeout_s: float) -> float:
        """Return the seconds the lease now has, 0.0 if it has ended; or UnavailableError."""

    def close(self) -> None: ...


class Lease:
    """One lease, from its grant until it is lost, which is final."""

    def __init__(self, lease: int, *, ttl_s: float, asked_at_s: float, clock: Clock) -> None:
        self.id = lease
        self.lost = asyncio.Event()
        self.valid_until = 0.0
        """By the monotonic clock. The thread that renews moves it."""
        self._clock = clock
        self._gone = asyncio.Event()
        self.extend(ttl_s, asked_at_s=asked_at_s)

    @property
    def held(self) -> bool:
        """True only while the store certainly has it, also just after a stall."""
        return not self.lost.is_set() and self._clock.monotonic() < self.valid_until

    def extend(self, ttl_s: float, *, asked_at_s: float) -> None:
        self.valid_until = asked_at_s + ttl_s * (1.0 - GIVEN_UP)

    def end(self) -> None:
        """Take the store's word that it has ended."""
        self._gone.set()

    async def until_lost(self) -> None:
        """Return when it has ended, or could not be renewed in time; then it is lost."""
        while self.held and not self._gone.is_set():
            left_s = self.valid_until - self._clock.monotonic()
            await race(_wait(self._gone), self._clock.sleep(left_s))
        self.lost.set()


class LeaseKeeper:
    """Holds one lease at a time; when it is lost, the next is asked for.

    Args:
        ttl_s: how long keys outlive a member that dies.
        clock: with a client, its monotonic time is read from the thread as well.
        client: makes what renews on a thread; None renews in the loop, through the store.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        ttl_s: int = 5,
        client: Callable[[], LeaseClient] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ttl_s = ttl_s
        self._client = client
        self._current: Lease | None = None
        self._granted = asyncio.Event()
        self._lost = asyncio.Event()
        self._lost.set()

    @property
    def lease(self) -> int:
        """The id for `Put.lease`; 0 while none is held."""
        return self._current.id if self._current is not None and self._current.held else 0

    @property
    def valid_until(self) -> float:
        return self._current.valid_until if self._current is not None else 0.0

    @property
    def lost(self) -> asyncio.Event:
        """The event of the current lease; already set while none is held."""
        return self._current.lost if self._current is not None else self._lost

    async def acquired(self) -> Lease:
        """Return the lease as soon as one is held."""
        while True:
            await self._granted.wait()
            if self._current is not None and self._current.held:
                return self._current
            # Its time is up, and `run` is about to notice.
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Hold a lease until cancelled, then revoke it: others take over at once."""
        former = 0
        while True:
            lease = await self._grant(after=former)
            self._current = lease
            self._granted.set()
            try:
                async with self._renewing(lease):
                    await lease.until_lost()
                    self._granted.clear()
                    log.warning("lease %x is lost: not renewed in time, or ended", lease.id)
            except asyncio.CancelledError:
                await self._revoke(lease)
                raise
            finally:
                lease.lost.set()
                self._granted.clear()
            former = lease.id

    async def _grant(self, *, after: int) -> Lease:
        """Ask until there is a new lease; first make sure that the former one is over."""
        failing = Seldom()
        while True:
            try:
                if after:
                    await self._store.revoke(after)
                asked_at_s = self._clock.monotonic()
                granted = await self._store.grant(self._ttl_s)
            except (UnavailableError, OutcomeUnknownError) as error:
                if failing.due(self._clock.monotonic()):
                    log.warning("no lease yet, trying again: %s", error)
                await self._clock.sleep(RETRY_DELAY_S)
                continue
            lease = Lease(granted, ttl_s=self._ttl_s, asked_at_s=asked_at_s, clock=self._clock)
            if lease.held:
                return lease

    async def _revoke(self, lease: Lease) -> None:
        # If it fails, the lease ends by itself a little later.
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(REVOKE_TIMEOUT_S):
                await self._store.revoke(lease.id)

    @asynccontextmanager
    async def _renewing(self, lease: Lease) -> AsyncIterator[None]:
        if self._client is None:
            renewing = asyncio.create_task(self._renew_in_loop(lease), name="lease.renew")
            try:
                yield
            finally:
                renewing.cancel()
                await asyncio.wait([renewing])
            return
        stop = threading.Event()
        thread = threading.Thread(
            target=self._renew_on_thread,
            args=(lease, self._client(), stop, asyncio.get_running_loop()),
            name="lease.renew",
            daemon=True,
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)

    async def _renew_in_loop(self, lease: Lease) -> None:
        delay_s = self._ttl_s / 3
        failing = Seldom()
        while True:
            await self._clock.sleep(delay_s)
            asked_at_s = self._clock.monotonic()
            try:
                ttl_s = await self._store.renew(lease.id)
            except UnavailableError as error:
                if failing.due(asked_at_s):
                    log.warning("lease %x: %s", lease.id, error)
                delay_s = RETRY_DELAY_S
                continue
            if ttl_s == 0.0:
                lease.end()
                return
            lease.extend(ttl_s, asked_at_s=asked_at_s)
            delay_s = self._ttl_s / 3

    def _renew_on_thread(
        self,
        lease: Lease,
        client: LeaseClient,
        stop: threading.Event,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        delay_s = self._ttl_s / 3
        failing = Seldom()
        while not stop.wait(delay_s):
            asked_at_s = self._clock.monotonic()
            try:
                ttl_s = client.renew(lease.id, timeout_s=self._ttl_s / 5)
            except UnavailableError as error:
                if failing.due(asked_at_s):
                    log.warning("lease %x: %s", lease.id, error)
                delay_s = RETRY_DELAY_S
                continue
            if ttl_s == 0.0:
                loop.call_soon_threadsafe(lease.end)
                break
            lease.extend(ttl_s, asked_at_s=asked_at_s)
            delay_s = self._ttl_s / 3
        client.close()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
