"""Tell those who wait for an image how far it is, in a few words and not too often."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL_S = 1.0
MEBIBYTE = 1 << 20


class Progress:
    """One pull, and all who watch it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._watchers: list[Callable[[str], None]] = []
        self._waiting = 0
        self._told_at = float("-inf")
        self._done = 0
        self._total = 0

    @property
    def unwatched(self) -> bool:
        return self._waiting == 0

    @contextmanager
    def to(self, watcher: Callable[[str], None] | None) -> Iterator[None]:
        """Tell ``watcher`` too, until this ends."""
        self._waiting += 1
        if watcher is not None:
            self._watchers.append(watcher)
        try:
            yield
        finally:
            self._waiting -= 1
            if watcher is not None:
                self._watchers.remove(watcher)

    def begin(self, total_bytes: int) -> None:
        self._done, self._total = 0, total_bytes
        if total_bytes:
            self._tell()

    def received(self, count: int) -> None:
        """Count bytes that arrived; negative if they have to be fetched again."""
        self._done += count
        if self._monotonic() - self._told_at >= INTERVAL_S:
            self._tell()

    def _tell(self) -> None:
        self._told_at = self._monotonic()
        done, total = self._done / MEBIBYTE, self._total / MEBIBYTE
        for watcher in tuple(self._watchers):
            watcher(f"pulling the image: {done:.1f} of {total:.1f} MiB")
