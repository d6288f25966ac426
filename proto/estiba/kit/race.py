"""Run coroutines until the first of them ends."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def race(*contenders: Coroutine[Any, Any, T]) -> T:
    """Return, or raise, what the first one that ends returns or raises; cancel the others.

    When it returns or is cancelled, none of them runs any more. Of several that end
    in the same instant the first in the order of arguments counts.
    """
    running = [asyncio.ensure_future(contender) for contender in contenders]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        return next(each for each in running if each.done()).result()
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
