"""An iterator that also tells when nothing has come for a while."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def with_ticks(
    source: AsyncGenerator[T, None], *, every_s: float
) -> AsyncGenerator[T | None, None]:
    """Yield what ``source`` yields, and None whenever that is nothing for ``every_s``."""
    async with aclosing(source):
        following = asyncio.ensure_future(anext(source))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=every_s)
                if not done:
                    yield None
                    continue
                try:
                    item = following.result()
                except StopAsyncIteration:
                    return
                following = asyncio.ensure_future(anext(source))
                yield item
        finally:
            following.cancel()
            await asyncio.wait({following})
