"""A queue of keys to look at. A key added while waiting is merged; added while taken, it comes
back once afterwards; no key is ever in two hands.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    def __init__(self) -> None:
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._taken: set[K] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K) -> None:
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._taken:
            self._ready.put_nowait(key)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[K]:
        key = await self._ready.get()
        self._waiting.discard(key)
        self._taken.add(key)
        try:
            yield key
        finally:
            self._taken.discard(key)
            if key in self._waiting:
                self._ready.put_nowait(key)

    @asynccontextmanager
    async def take_all(self) -> AsyncIterator[list[K]]:
        """Take every key that waits, at least one: for a planner that works on groups."""
        first = await self._ready.get()
        keys = [first]
        while not self._ready.empty():
            keys.append(self._ready.get_nowait())
        self._waiting.difference_update(keys)
        self._taken.update(keys)
        try:
            yield keys
        finally:
            self._taken.difference_update(keys)
            for key in keys:
                if key in self._waiting:
                    self._ready.put_nowait(key)
