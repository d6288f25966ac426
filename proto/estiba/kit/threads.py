"""Work on a thread that must not be left half done: it cannot be cancelled, only awaited."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def whole(work: Callable[[], T], *, hurry: Callable[[], None] | None = None) -> T:
    """Do ``work`` on a thread and return what it returns.

    When cancelled, ``hurry`` is called, and the work's end awaited before the caller goes on;
    how it ended then concerns nobody any more.
    """
    working = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        if hurry is not None:
            hurry()
        await asyncio.gather(working, return_exceptions=True)
        raise
