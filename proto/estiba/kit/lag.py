"""Measure how late the event loop is, so that our own stall is not taken for another's death."""

import asyncio
from collections import deque

from prometheus_client import CollectorRegistry, Histogram

PERIOD_S = 0.25
# How long a stall counts: as long as what it kept waiting may take to be worked off.
MEMORY_S = 10.0


class LagMonitor:
    """Sleeps for a fixed time, again and again, and sees how much longer it took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lags = Histogram(
            "estiba_event_loop_lag_seconds",
            "How late the event loop was in coming back to a coroutine that slept.",
            buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
            registry=registry,
        )
        self._recent: deque[tuple[float, float]] = deque()
        self._due: float | None = None

    @property
    def current_lag_s(self) -> float:
        """The worst of the last ten seconds, a stall that has just ended included.

        A deadline on another's sign of life is extended by this: while the loop stood
        still, the sign may have come and waited to be read.
        """
        now = asyncio.get_running_loop().time()
        overdue = 0.0 if self._due is None else now - self._due
        seen = [lag for at, lag in self._recent if at > now - MEMORY_S]
        return max(overdue, *seen, 0.0)

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._due = loop.time() + PERIOD_S
                await asyncio.sleep(PERIOD_S)
                now = loop.time()
                lag = max(now - self._due, 0.0)
                self._lags.observe(lag)
                self._recent.append((now, lag))
                while self._recent[0][0] <= now - MEMORY_S:
                    self._recent.popleft()
        finally:
            self._due = None
