"""Pages of a list: all from the store as it was at the first page's revision."""

import base64
import binascii
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from controlplane.errors import InvalidError
from controlplane.store.protocol import Entry, Store

T = TypeVar("T")

DEFAULT_SIZE = 500
LARGEST_SIZE = 5000
# A page ends early rather than come near what a client takes in one message, 4 MiB by default.
LARGEST_PAGE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page starts. Revision 0: now, at the beginning."""

    revision: int = 0
    key: str = ""

    @classmethod
    def parse(cls, token: str) -> "Position":
        """Raises InvalidError: the token comes from no page of ours."""
        if not token:
            return cls()
        try:
            revision, _, key = base64.urlsafe_b64decode(token).decode().partition(" ")
            return cls(int(revision), key)
        except (binascii.Error, ValueError):
            raise InvalidError([("page_token", "is none that a list has returned")]) from None

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.revision} {self.key}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Items(Generic[T]):
    items: tuple[T, ...]
    revision: int
    next_token: str


async def read_page(
    store: Store,
    prefix: str,
    parse: Callable[[Entry], T | None],
    *,
    size: int,
    token: str,
) -> Items[T]:
    """Return up to ``size`` of what ``parse`` makes of the entries; None leaves one out.

    Raises:
        CompactedError: the first page is too long ago.
        InvalidError: the token is not ours.
    """
    position = Position.parse(token)
    if token and not (position.key.startswith(prefix) and 0 < position.revision < 1 << 63):
        # Whoever makes tokens up would read what else the store keeps.
        raise InvalidError([("page_token", "is none that this list has returned")])
    size = min(size or DEFAULT_SIZE, LARGEST_SIZE)
    items: list[T] = []
    total_bytes = 0
    while True:
        # Not just as many as are missing: when few pass, a long list is still read in few steps.
        limit = max(size, DEFAULT_SIZE)
        page = await store.list(prefix, start=position.key, limit=limit, at=position.revision)
        for entry in page.entries:
            if len(items) == size or total_bytes > LARGEST_PAGE_BYTES:
                following = Position(page.revision, entry.key)
                return Items(tuple(items), page.revision, str(following))
            item = parse(entry)
            if item is not None:
                items.append(item)
                total_bytes += len(entry.value)
        position = Position(page.revision, page.next_key)
        if not page.next_key:
            return Items(tuple(items), page.revision, "")


async def read_range(
    store: Store, prefix: str, first: str, last: str, *, at: int
) -> AsyncIterator[Entry]:
    """Yield the entries from key ``first`` to ``last``, both included, as they were then."""
    start = first
    while start and start <= last:
        page = await store.list(prefix, start=start, at=at)
        for entry in page.entries:
            if entry.key > last:
                return
            yield entry
        start = page.next_key
