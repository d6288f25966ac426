"""Wait for what another process does and no event tells: look again until a deadline.

Deadlines are for the machines that people have. Where one is emulated, ESTIBA_TEST_SLOWNESS says
how many times longer all of them are.
"""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SLOWNESS = float(os.environ.get("ESTIBA_TEST_SLOWNESS", "1"))


def stretched(seconds: float) -> float:
    """Return a deadline for the machine at hand; what is measured is never stretched."""
    return seconds * SLOWNESS


def eventually(look: Callable[[], T], *, within_s: float, what: str, every_s: float = 0.1) -> T:
    """Return the first truthy answer of ``look``.

    Raises:
        AssertionError: none came within ``within_s``, stretched; tells ``what`` was waited
            for and the last answer.
    """
    deadline = time.monotonic() + stretched(within_s)
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what} (last seen: {answer!r})")
        time.sleep(every_s)
