"""What a transaction may hold, and why it was refused: the same for both stores. Pure."""

from collections.abc import Callable, Sequence

from controlplane.errors import ConflictError, DeposedError, StoreError
from controlplane.store.protocol import (
    MAX_TXN_BYTES,
    MAX_TXN_OPS,
    Condition,
    Entry,
    Fence,
    HasValue,
    Put,
    Unchanged,
    Write,
)


def check(conditions: Sequence[Condition], writes: Sequence[Write]) -> None:
    """Raise ValueError for what etcd would not take."""
    if max(len(conditions), len(writes)) > MAX_TXN_OPS:
        raise ValueError(
            f"a transaction of {len(conditions)} conditions and {len(writes)} writes;"
            f" the most is {MAX_TXN_OPS} of each"
        )
    if any(isinstance(each, Fence) and each.create_revision < 1 for each in conditions):
        # To etcd, 0 means that the key does not exist: that nobody leads.
        raise ValueError("a fence without a term of office")
    written = {write.key for write in writes}
    if len(written) != len(writes):
        raise ValueError("a transaction writes one key twice")
    size_bytes = sum(len(write.value) for write in writes if isinstance(write, Put))
    if size_bytes > MAX_TXN_BYTES:
        raise ValueError(
            f"a transaction of {size_bytes} bytes; the most that etcd takes is {MAX_TXN_BYTES}"
        )


def refusal(
    conditions: Sequence[Condition], current: Callable[[str], Entry | None]
) -> StoreError | None:
    """Return why the transaction is refused, None if every condition holds.

    The fence comes first: what else has changed is no business of a deposed leader.
    """
    for condition in sorted(conditions, key=_fences_first):
        entry = current(condition.key)
        if _holds(condition, entry):
            continue
        match condition:
            case Fence():
                return DeposedError(
                    f"{condition.key} is not the one created at revision"
                    f" {condition.create_revision} any more"
                )
            case Unchanged():
                return ConflictError(condition.key, read_at=condition.mod_revision)
            case HasValue():
                return ConflictError(condition.key, read_at=0)
    return None


def _fences_first(condition: Condition) -> bool:
    return not isinstance(condition, Fence)


def _holds(condition: Condition, entry: Entry | None) -> bool:
    match condition:
        case Unchanged():
            return condition.mod_revision == (entry.mod_revision if entry else 0)
        case HasValue():
            return entry is not None and entry.value == condition.value
        case Fence():
            return entry is not None and entry.create_revision == condition.create_revision
