"""Let callers that want the same content at the same time share one piece of work."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from agent.errors import ImageError

K = TypeVar("K")
V = TypeVar("V")


class Merged(Generic[K, V]):
    """The first caller of a key works, the others wait for its result or its ImageError.

    If the first ends otherwise, as when it is cancelled, another begins again: nobody suffers
    from a stranger's end.
    """

    def __init__(self) -> None:
        self._under_way: dict[K, asyncio.Future[V]] = {}

    async def run(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        while (other := self._under_way.get(key)) is not None:
            await asyncio.wait([other])
            if not other.cancelled():
                return other.result()
        outcome: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._under_way[key] = outcome
        try:
            value = await work()
        except ImageError as error:
            outcome.set_exception(error)
            outcome.exception()  # marks it as seen, for when nobody else waits
            raise
        else:
            outcome.set_result(value)
            return value
        finally:
            del self._under_way[key]
            outcome.cancel()
