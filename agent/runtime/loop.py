"""One thread that waits for descriptors and for time, shared by launcher and log pump."""

import heapq
import itertools
import select
import time
from collections.abc import Callable
from contextlib import suppress

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

# With so many descriptors ready at once, each still gets its turn soon.
_MAX_EVENTS = 64
_LOOK_EVERY_S = 0.02


class Loop:
    """Calls back when a descriptor is ready, or at a time. Callbacks must not block."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], object]] = {}
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._running = False

    def watch(self, descriptor: int, ready: Callable[[], object], events: int = READABLE) -> None:
        """Call ``ready`` whenever the descriptor is; again and again until it is no longer."""
        if descriptor in self._ready:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._ready[descriptor] = ready

    def forget(self, descriptor: int) -> None:
        """Stop watching. Call it before the descriptor is closed."""
        if self._ready.pop(descriptor, None) is not None:
            with suppress(FileNotFoundError):
                self._epoll.unregister(descriptor)

    def after(self, delay_s: float, due: Callable[[], object]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._numbers), due))

    def when(
        self, holds: Callable[[], bool], then: Callable[[], object], *, patience_s: float
    ) -> None:
        """Call ``then`` once ``holds`` does, or when our patience has run out."""
        if patience_s <= 0 or holds():
            then()
            return
        left_s = patience_s - _LOOK_EVERY_S
        self.after(_LOOK_EVERY_S, lambda: self.when(holds, then, patience_s=left_s))

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Call back until `stop` is called."""
        self._running = True
        while self._running:
            for descriptor, _ in self._epoll.poll(self._patience_s(), _MAX_EVENTS):
                # An earlier callback of this round may have ended the watch.
                ready = self._ready.get(descriptor)
                if ready:
                    ready()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()

    def _patience_s(self) -> float:
        if not self._timers:
            return -1
        return max(0.0, self._timers[0][0] - time.monotonic())
