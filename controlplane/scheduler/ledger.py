"""What each node has, and what of it is promised: as arrays, so that placing costs little. Pure.

The ledger is kept from plan to plan and told of changes only; nothing in it is decided.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.scheduler.constraints import Constraint
from estiba.model import Node, NodeId, Resources, ServiceId, Task, TaskId

Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]

_FIRST_SIZE = 64
_CONSTRAINTS_KEPT = 512


@dataclass(frozen=True, slots=True)
class _Entry:
    """How one task counts: against the node's resources, and in the spread."""

    row: int
    node_id: NodeId
    service_id: ServiceId
    reservations: Resources
    counted: bool


class Ledger:
    """Rows of nodes, and columns of what they have free and of the tasks on them.

    What is put is kept under its id: putting it again replaces it, so a caller need
    not know what the ledger had been told before.
    """

    def __init__(self) -> None:
        self._rows: dict[NodeId, int] = {}
        self._free_rows: list[int] = []
        self._nodes: list[Node | None] = []
        self._entries: dict[TaskId, _Entry] = {}
        self._entries_in: list[int] = []
        self._by_service: defaultdict[ServiceId, dict[int, int]] = defaultdict(dict)
        self._matches: dict[Constraint, Flags] = {}
        self._order: Counts | None = None
        self.nano_cpus: Counts = np.zeros(_FIRST_SIZE, np.int64)
        self.memory_bytes: Counts = np.zeros(_FIRST_SIZE, np.int64)
        self.tasks: Counts = np.zeros(_FIRST_SIZE, np.int64)
        self.state: Counts = np.zeros(_FIRST_SIZE, np.int64)
        self.availability: Counts = np.zeros(_FIRST_SIZE, np.int64)
        self.present: Flags = np.zeros(_FIRST_SIZE, np.bool_)

    @classmethod
    def of(cls, nodes: Iterable[Node], tasks: Iterable[Task] = ()) -> "Ledger":
        """Build one from scratch."""
        ledger = cls()
        for node in nodes:
            ledger.put_node(node)
        for task in tasks:
            ledger.put_task(task)
        return ledger

    def put_node(self, node: Node) -> None:
        row = self._row(node.id)
        known = self._nodes[row]
        before = Resources() if known is None else known.capacity
        self._nodes[row] = node
        if known is None:
            self._order = None
        self._add(row, node.capacity - before)
        self.state[row] = node.state
        self.availability[row] = node.availability
        self.present[row] = True
        for constraint, flags in self._matches.items():
            flags[row] = constraint.matches(node)

    def drop_node(self, node_id: NodeId) -> None:
        row = self._rows.get(node_id)
        known = None if row is None else self._nodes[row]
        if row is None or known is None:
            return
        self._nodes[row] = None
        self._order = None
        self._add(row, Resources() - known.capacity)
        self.present[row] = False
        self._free_if_unused(row, node_id)

    def put_task(self, task: Task) -> None:
        """Count the task where it is: what it reserves until it has ended, and, while it
        is wanted, as one of its service and of its node.
        """
        self.drop_task(task.id)
        if task.node_id is None or not task.holds_resources:
            return
        row = self._row(task.node_id)
        entry = _Entry(row, task.node_id, task.service_id, task.reservations, task.wanted)
        self._entries[task.id] = entry
        self._entries_in[row] += 1
        self._add(row, Resources() - entry.reservations)
        if entry.counted:
            self._count(entry, 1)

    def drop_task(self, task_id: TaskId) -> None:
        entry = self._entries.pop(task_id, None)
        if entry is None:
            return
        self._entries_in[entry.row] -= 1
        self._add(entry.row, entry.reservations)
        if entry.counted:
            self._count(entry, -1)
        if self._nodes[entry.row] is None:
            self._free_if_unused(entry.row, entry.node_id)

    def node(self, row: int) -> Node:
        """Return the node of a row that is present."""
        node = self._nodes[row]
        if node is None:
            raise LookupError(f"row {row} has no node")
        return node

    def row_of(self, node_id: NodeId) -> int | None:
        return self._rows.get(node_id)

    def tasks_of(self, service_id: ServiceId) -> Counts:
        """Return how many wanted tasks of the service each row has."""
        counts = np.zeros(len(self.tasks), np.int64)
        held = self._by_service.get(service_id)
        if held:
            counts[list(held)] = list(held.values())
        return counts

    def matching(self, constraint: Constraint) -> Flags:
        """Return which rows' nodes pass the constraint."""
        flags = self._matches.get(constraint)
        if flags is None:
            if len(self._matches) >= _CONSTRAINTS_KEPT:
                self._matches.clear()
            flags = self._flags(constraint.matches)
            self._matches[constraint] = flags
        return flags

    def order(self) -> Counts:
        """Return each row's place when nodes are sorted by id."""
        if self._order is None:
            by_id = sorted(self._rows.items())
            order = np.zeros(len(self.tasks), np.int64)
            order[[row for _, row in by_id]] = np.arange(len(by_id))
            self._order = order
        return self._order

    def _flags(self, test: Callable[[Node], bool]) -> Flags:
        flags = np.zeros(len(self.tasks), np.bool_)
        for row, node in enumerate(self._nodes):
            flags[row] = node is not None and test(node)
        return flags

    def _row(self, node_id: NodeId) -> int:
        row = self._rows.get(node_id)
        if row is None:
            row = self._free_rows.pop() if self._free_rows else self._new_row()
            self._rows[node_id] = row
            self._order = None
        return row

    def _new_row(self) -> int:
        row = len(self._nodes)
        self._nodes.append(None)
        self._entries_in.append(0)
        if row == len(self.tasks):
            self._grow()
        return row

    def _grow(self) -> None:
        added = len(self.tasks)
        self.nano_cpus = np.pad(self.nano_cpus, (0, added))
        self.memory_bytes = np.pad(self.memory_bytes, (0, added))
        self.tasks = np.pad(self.tasks, (0, added))
        self.state = np.pad(self.state, (0, added))
        self.availability = np.pad(self.availability, (0, added))
        self.present = np.pad(self.present, (0, added))
        self._matches = {key: np.pad(flags, (0, added)) for key, flags in self._matches.items()}

    def _free_if_unused(self, row: int, node_id: NodeId) -> None:
        if self._entries_in[row] == 0:
            del self._rows[node_id]
            self._free_rows.append(row)
            self._order = None

    def _add(self, row: int, amount: Resources) -> None:
        self.nano_cpus[row] += amount.nano_cpus
        self.memory_bytes[row] += amount.memory_bytes

    def _count(self, entry: _Entry, change: int) -> None:
        self.tasks[entry.row] += change
        held = self._by_service[entry.service_id]
        held[entry.row] = held.get(entry.row, 0) + change
        if held[entry.row] == 0:
            del held[entry.row]
            if not held:
                del self._by_service[entry.service_id]
