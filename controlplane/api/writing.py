"""How a user's write is made: read, change what was read, store if it is still the same."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from controlplane.api import access
from controlplane.errors import ConflictError, OutcomeUnknownError
from controlplane.store.cache import Cache
from controlplane.store.protocol import Condition, Entry, Store, Write
from estiba import wire
from estiba.kit.clock import Clock
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

T = TypeVar("T")

# Of a write without compared revision: how often it is tried before we say that others came first.
ATTEMPTS = 5
# How long a caller waits until this member has seen what it wrote.
SEEN_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction; without writes there is nothing to do."""

    conditions: Sequence[Condition]
    writes: Sequence[Write]


class ChangedError(ConflictError):
    """An object changed after the caller read it."""

    def __init__(self, what: str, *, key: str, read_at: int) -> None:
        super().__init__(key, read_at=read_at)
        self.args = (f"{what} has changed since revision {read_at}: read it again",)


class Writer:
    """Stores users' changes, and waits until this member's view contains them."""

    def __init__(self, store: Store, cache: Cache, clock: Clock) -> None:
        self.store = store
        self.cache = cache
        self._clock = clock

    async def write(self, change: Change) -> None:
        revision = await self.store.commit(change.conditions, change.writes)
        await self.cache.wait_for(revision, timeout_s=SEEN_WITHIN_S)

    async def update(
        self,
        key: str,
        change: Callable[[Entry | None], Change],
        *,
        read_at: int,
        what: str,
    ) -> None:
        """Read ``key``, and store what ``change`` makes of it.

        Sent again after it got no answer, since it compares what was read: if it did
        happen, the next attempt finds it done or changes it to the same.

        Args:
            read_at: refuse unless this is what the key was last changed at; 0: whatever
                is there, so that the last writer wins.
            what: names the object in errors, such as "service web".

        Raises:
            ChangedError: the object is another than the one read at ``read_at``, or it
                changes faster than we can write.
        """
        seen = read_at
        for attempt in range(1, ATTEMPTS + 1):
            entry = await self.store.get(key)
            revision = entry.mod_revision if entry is not None else 0
            if read_at and revision != read_at:
                raise ChangedError(what, key=key, read_at=read_at)
            seen = revision
            wanted = change(entry)
            if not wanted.writes:
                await self.cache.wait_for(revision, timeout_s=SEEN_WITHIN_S)
                return
            try:
                await self.write(wanted)
            except ConflictError:
                log.info("%s changed while it was written, attempt %d", what, attempt)
            except OutcomeUnknownError:
                if attempt == ATTEMPTS or read_at:
                    raise
                log.info("no answer to a write of %s, attempt %d", what, attempt)
            else:
                return
        raise ChangedError(what, key=key, read_at=seen)

    def stamp(self, metadata: v1.Metadata) -> None:
        """Note in an object's metadata who changes it, and when."""
        metadata.changed_at.CopyFrom(wire.timestamp(self._clock.now()))
        metadata.changed_by = str(access.caller())


def same(one: Message, other: Message) -> bool:
    """Compare two messages, fields this version does not know included."""
    serialize = type(one).SerializeToString
    return serialize(one, deterministic=True) == serialize(other, deterministic=True)


def set_labels(metadata: v1.Metadata, labels: Mapping[str, str]) -> bool:
    """Replace the labels as a whole; say whether that changed them."""
    if dict(metadata.labels) == dict(labels):
        return False
    metadata.labels.clear()
    metadata.labels.update(labels)
    return True
