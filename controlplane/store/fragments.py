"""Put the answers of etcd's watch together into batches of whole revisions. Pure.

Asked for fragments, etcd cuts an answer that grows too large between any two events,
also within one transaction, and marks all parts but the last. A batch is whole only
with the last part, and only then may the resume point move.
"""

from collections.abc import Iterable

from controlplane.store.protocol import Batch, Event


class Assembly:
    """The batches of one watch. ``delivered`` is the revision to resume after.

    Lives as long as the watch; a new stream begins with `restart`.
    """

    def __init__(self, *, after: int) -> None:
        self.delivered = after
        self._parts: list[Event] = []

    def restart(self) -> None:
        """Forget the parts of an answer whose end was lost: it is sent again as a whole."""
        self._parts.clear()

    def add(self, events: Iterable[Event], *, more: bool) -> Batch | None:
        """Take one part of an answer; return the batch if it was the last.

        Events up to ``delivered`` are dropped: the watch asks for them again on purpose.
        """
        self._parts += [event for event in events if event.revision > self.delivered]
        if more or not self._parts:
            return None
        batch = Batch(self._parts[-1].revision, tuple(self._parts))
        self._parts = []
        self.delivered = batch.revision
        return batch

    def bookmark(self, revision: int) -> Batch | None:
        """Take etcd's word that everything up to ``revision`` has been sent."""
        if self._parts or revision <= self.delivered:
            return None
        self.delivered = revision
        return Batch(revision, ())
