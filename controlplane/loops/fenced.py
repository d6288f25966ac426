"""Writes of a leader: refused once it is deposed, and never left with an unknown outcome.

Every write compares the leader's key and the plan's key. A write that got no answer may
still be on its way to the store; changing the plan's key makes sure that it can not
happen any more unless it already has.
"""

from collections.abc import Sequence

from controlplane.errors import ConflictError
from controlplane.store import keys
from controlplane.store.protocol import Condition, Fence, Put, Store, Unchanged, Write

# What `commit` adds to the conditions.
OWN_CONDITIONS = 2


class FencedStore:
    def __init__(self, store: Store, fence: Fence) -> None:
        self._store = store
        self._fence = fence
        self._plan_revision = 0

    async def begin(self) -> None:
        """Read the plan's key: to be called before anything else."""
        entry = await self._store.get(keys.PLAN)
        self._plan_revision = entry.mod_revision if entry is not None else 0

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        """Write all or nothing, as `Store.commit` does, under the leader's fence."""
        plan = Unchanged(keys.PLAN, self._plan_revision)
        return await self._store.commit([self._fence, plan, *conditions], writes)

    async def void_unanswered(self) -> None:
        """Make certain that no write of ours that got no answer happens from now on.

        What the store holds after this call tells which of them have happened.
        """
        try:
            self._plan_revision = await self.commit([], [Put(keys.PLAN, b"")])
        except ConflictError:
            # An earlier attempt to change it got no answer, and did.
            await self.begin()
