"""Wait for what another process does and no event tells: look again until a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within_s: float, what: str, every_s: float = 0.1) -> T:
    """Return the first truthy answer of ``look``.

    Raises:
        AssertionError: none came within ``within_s``; tells ``what`` was waited for and
            the last answer.
    """
    deadline = time.monotonic() + within_s
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what} (last seen: {answer!r})")
        time.sleep(every_s)
