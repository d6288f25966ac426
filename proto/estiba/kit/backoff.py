"""How long to wait before trying again. Pure: randomness and results are the caller's."""

from collections.abc import Callable


class Backoff:
    """Delays that double from ``first_s`` to ``most_s``, each spread by up to half of itself.

    The spread keeps a thousand agents from coming back in the same instant.
    ``random`` returns a float in [0, 1).
    """

    def __init__(self, *, first_s: float, most_s: float, random: Callable[[], float]) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._random = random
        self._failures = 0

    def next_s(self) -> float:
        """Return the delay before the next attempt, and count a failure."""
        exponent = min(self._failures, 30)
        self._failures += 1
        delay_s = min(self._first_s * float(2**exponent), self._most_s)
        return delay_s * (1.0 - 0.5 * self._random())

    def reset(self) -> None:
        self._failures = 0
