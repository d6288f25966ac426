"""From several writers to one reader within the loop: bounded, and it can be closed."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from controlplane.errors import EstibaError

T = TypeVar("T")


class Pipe(Generic[T]):
    """Holds up to ``size`` items that wait to be read; a writer waits while it is full."""

    def __init__(self, size: int) -> None:
        self._items: asyncio.Queue[T | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(size)
        self._error: EstibaError | None = None

    async def put(self, item: T) -> None:
        await self._room.acquire()
        self._items.put_nowait(item)

    def close(self, error: EstibaError | None = None) -> None:
        """Let the reader end, with this error if there is one, after what was put before."""
        self._error = error
        self._items.put_nowait(None)

    async def items(self) -> AsyncGenerator[T, None]:
        while (item := await self._items.get()) is not None:
            self._room.release()
            yield item
        if self._error is not None:
            raise self._error
