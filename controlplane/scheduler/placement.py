"""Decide for each request which node takes it, or say why none does. Pure and deterministic.

Requests that differ in nothing but their task are placed as one group.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.scheduler.filters import (
    Filter,
    constraint_filters,
    explain,
    name_of,
    passing,
    resource_filters,
    standing_filters,
)
from controlplane.scheduler.ledger import Counts, Flags, Ledger
from controlplane.scheduler.ranking import Candidates, Picks, pick
from estiba.model import NodeId, Resources, Service, ServiceId, TaskId


@dataclass(frozen=True, slots=True)
class Request:
    """A task that needs a node."""

    task_id: TaskId
    service_id: ServiceId
    service_name: str
    constraints: tuple[str, ...]
    reservations: Resources
    avoid: frozenset[NodeId] = frozenset()
    """To be taken only if no other node fits: their agents refused earlier attempts."""

    @classmethod
    def of(
        cls, service: Service, task_id: TaskId, *, avoid: frozenset[NodeId] = frozenset()
    ) -> "Request":
        """Ask for a place for a task of the service's current template."""
        return cls(
            task_id, service.id, service.name, service.constraints, service.reservations, avoid
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """The answer: this task, that node, for this reason; or no node, for this reason."""

    task_id: TaskId
    node_id: NodeId | None
    reason: str


def place(requests: Sequence[Request], ledger: Ledger) -> list[Placement]:
    """Return one placement for each request, in their order.

    The ledger is not changed. Requests of one service may be placed before an earlier
    one of another service, never before an earlier one of their own kind.
    """
    placing = _Placing(ledger)
    placed: dict[TaskId, Placement] = {}
    for service_id, kinds in _groups(requests).items():
        of_service = ledger.tasks_of(service_id)
        for group in kinds.values():
            for placement in placing.place_group(group, of_service):
                placed[placement.task_id] = placement
    return [placed[request.task_id] for request in requests]


def _groups(requests: Iterable[Request]) -> dict[ServiceId, dict[object, list[Request]]]:
    """Bring together the requests of one service, and those that differ only in their task."""
    groups: dict[ServiceId, dict[object, list[Request]]] = {}
    for request in requests:
        kind = (request.constraints, request.reservations, request.avoid)
        groups.setdefault(request.service_id, {}).setdefault(kind, []).append(request)
    return groups


class _Placing:
    """One call of `place`: what is free, less what it has promised so far."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._cpus = ledger.nano_cpus.copy()
        self._memory = ledger.memory_bytes.copy()
        self._tasks = ledger.tasks.copy()
        self._standing = standing_filters(ledger)
        self._standing_flags = passing(ledger, self._standing)

    def place_group(self, group: list[Request], of_service: Counts) -> list[Placement]:
        """Place requests of one kind; ``of_service`` is changed to count them."""
        like = group[0]
        musts = constraint_filters(self._ledger, like.constraints)
        able = self._standing_flags & passing(self._ledger, musts)
        refused = self._refused(like)
        placed: list[Placement] = []
        for willing, remark in ((~refused, ""), (refused, _LAST_RESORT)):
            rest = group[len(placed) :]
            if rest and willing.any():
                picks = self._pick(len(rest), able & willing, like.reservations, of_service)
                placed += self._placements(rest, picks, remark)
        rest = group[len(placed) :]
        if rest:
            reason = self._explain(musts, like.reservations)
            placed += [Placement(request.task_id, None, reason) for request in rest]
        return placed

    def _refused(self, like: Request) -> Flags:
        flags = np.zeros_like(self._ledger.present)
        for node_id in like.avoid:
            row = self._ledger.row_of(node_id)
            if row is not None:
                flags[row] = True
        return flags

    def _pick(self, wanted: int, able: Flags, need: Resources, of_service: Counts) -> Picks:
        rows = np.flatnonzero(able)
        room = np.full(len(rows), wanted + 1)
        for free, each in ((self._cpus, need.nano_cpus), (self._memory, need.memory_bytes)):
            if each > 0:
                room = np.minimum(room, np.maximum(free[rows] // each, 0))
        fit = room > 0
        rows, room = rows[fit], room[fit]
        order = self._ledger.order()[rows]
        picks = pick(wanted, Candidates(rows, of_service[rows], self._tasks[rows], order, room))
        self._promise(picks.rows, need, of_service)
        return picks

    def _promise(self, rows: Counts, need: Resources, of_service: Counts) -> None:
        added = np.bincount(rows, minlength=len(of_service))
        of_service += added
        self._tasks += added
        self._cpus -= added * need.nano_cpus
        self._memory -= added * need.memory_bytes

    def _placements(self, group: list[Request], picks: Picks, remark: str) -> list[Placement]:
        names: dict[int, tuple[NodeId, str]] = {}
        for row in np.unique(picks.rows).tolist():
            names[row] = (self._ledger.node(row).id, name_of(self._ledger, row))
        service_name = group[0].service_name
        lines = zip(
            group,
            picks.rows.tolist(),
            picks.of_service.tolist(),
            picks.fitting.tolist(),
            strict=False,
        )
        placed = []
        for request, row, had, fitting in lines:
            node_id, name = names[row]
            if fitting == 1:
                reason = f"{name} is the only node that fits{remark}"
            else:
                fewest = f"{name} has the fewest tasks of {service_name} ({had})"
                reason = f"{fewest} among {fitting} nodes that fit{remark}"
            placed.append(Placement(request.task_id, node_id, reason))
        return placed

    def _explain(self, musts: list[Filter], need: Resources) -> str:
        shortages = resource_filters(self._ledger, self._cpus, self._memory, need)
        return explain(self._ledger, [*self._standing, *musts, *shortages])


_LAST_RESORT = ", though it refused an earlier attempt"
