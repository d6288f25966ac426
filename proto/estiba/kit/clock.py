"""Time as an argument: programs pass a clock in, so tests can pass one that jumps."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Return seconds since the epoch, for what is stored and shown."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for deadlines."""

    async def sleep(self, delay_s: float) -> None: ...


class SystemClock:
    """The machine's time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class LoopClock:
    """The running event loop's time, which a simulation makes jump."""

    def __init__(self, *, epoch_s: float = 1_700_000_000.0) -> None:
        self._epoch_s = epoch_s

    def now(self) -> float:
        return self._epoch_s + self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
