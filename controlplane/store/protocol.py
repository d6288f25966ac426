"""What the control plane needs of its store: etcd's guarantees, none of its API.

Two implementations keep this protocol: `controlplane.store.etcd` and
`controlplane.store.memory`. The same tests run against both.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from controlplane.store.keys import LEADER


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The key was last changed at ``mod_revision``; 0: it does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class HasValue:
    """The key exists and has exactly this value."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Fence:
    """The leader key is still the one that was created at ``create_revision``.

    Part of every write a loop makes: a deposed leader's write is refused with
    DeposedError, whatever it believes (a lease is not a lock).
    """

    create_revision: int
    key: str = LEADER


Condition = Unchanged | HasValue | Fence


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


Write = Put | Delete

# etcd counts conditions and writes of a transaction each against --max-txn-ops, 128 by default.
MAX_TXN_OPS = 128

# etcd's --max-request-bytes, 1.5 MiB by default, less room for keys and conditions.
MAX_TXN_BYTES = 1_500_000


@dataclass(frozen=True, slots=True)
class Page:
    entries: tuple[Entry, ...]
    revision: int
    """The store's revision that the page shows."""
    next_key: str
    """Where the next page starts; "" after the last."""


@dataclass(frozen=True, slots=True)
class Event:
    key: str
    entry: Entry | None
    """What the key holds now; None: it was deleted."""
    revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """All events after the last batch up to and including ``revision``, whole revisions only.

    Without events it is a bookmark: nothing of interest happened up to there.
    """

    revision: int
    events: tuple[Event, ...]


class Store(Protocol):
    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str, *, start: str = "", limit: int = 1000, at: int = 0) -> Page:
        """Return one page of the keys under ``prefix`` from ``start`` on, in order.

        Args:
            at: read as of this revision; 0: now. Pass the first page's revision to
                the following ones, so that all belong together.

        Raises:
            CompactedError: ``at`` is too old.
        """

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        """Write all or nothing; return the revision.

        Raises:
            ConflictError: a condition other than the fence does not hold; names the key.
            DeposedError: the fence does not hold.
            LeaseEndedError: a lease that a write names has ended.
            UnavailableError: the store was not reached, or had no room; nothing was written.
            OutcomeUnknownError: no answer came; the write may have happened.
            ValueError: more than MAX_TXN_OPS conditions or writes or MAX_TXN_BYTES, or a key
                written twice.
        """

    def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        """Yield every change after revision ``after`` once, in order, until closed.

        Reconnects by itself, and resumes after what was last delivered. Close it (aclosing)
        when leaving it early.

        Raises:
            CompactedError: what comes next is gone from history: list, then watch from there.
        """

    async def revision(self) -> int:
        """Return the store's current revision, read from a majority."""

    async def grant(self, ttl_s: int) -> int:
        """Make a lease that ends ``ttl_s`` seconds after its last renewal; return its id."""

    async def renew(self, lease: int) -> float:
        """Renew the lease; return the seconds it now has. 0.0: it has ended."""

    async def revoke(self, lease: int) -> None:
        """End the lease now, its keys with it. An unknown lease is not an error."""
