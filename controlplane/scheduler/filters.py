"""Which nodes can take a task, and the sentence that says why the others cannot. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.scheduler.amounts import bytes_text, cpus_text
from controlplane.scheduler.constraints import parse_constraint
from controlplane.scheduler.ledger import Counts, Flags, Ledger
from estiba.model import Availability, NodeState, Resources


@dataclass(frozen=True, slots=True)
class Filter:
    """One question to every node, and how to say that one or several fail it."""

    passing: Flags
    one: str
    many: str
    detail: Callable[[Flags], str] | None = None
    """Given the nodes that fail, what would have been needed."""


def standing_filters(ledger: Ledger) -> list[Filter]:
    """Return the filters that are the same for every task."""
    return [
        Filter(ledger.state != NodeState.DOWN, "is down", "are down"),
        Filter(ledger.state != NodeState.UNKNOWN, "is unknown", "are unknown"),
        Filter(ledger.availability != Availability.PAUSE, "is paused", "are paused"),
        Filter(ledger.availability != Availability.DRAIN, "is drained", "are drained"),
    ]


def constraint_filters(ledger: Ledger, constraints: Iterable[str]) -> list[Filter]:
    """Return one filter for each constraint; one that cannot be read passes no node."""
    filters = []
    for text in constraints:
        try:
            passing = ledger.matching(parse_constraint(text))
        except ValueError:
            passing = np.zeros_like(ledger.present)
        filters.append(Filter(passing, f"does not match {text}", f"do not match {text}"))
    return filters


def resource_filters(
    ledger: Ledger, free_cpus: Counts, free_memory: Counts, need: Resources
) -> list[Filter]:
    """Return filters for what the task reserves; what it does not reserve, no node lacks."""
    filters = []
    if need.nano_cpus > 0:
        detail = _Shortage(ledger, free_cpus, need.nano_cpus, cpus_text)
        filters.append(
            Filter(free_cpus >= need.nano_cpus, "lacks cpus", "lack cpus", detail.sentence)
        )
    if need.memory_bytes > 0:
        detail = _Shortage(ledger, free_memory, need.memory_bytes, bytes_text)
        filters.append(
            Filter(free_memory >= need.memory_bytes, "lacks memory", "lack memory", detail.sentence)
        )
    return filters


def passing(ledger: Ledger, filters: Iterable[Filter]) -> Flags:
    """Return the nodes that pass them all."""
    result = ledger.present.copy()
    for each in filters:
        result &= each.passing
    return result


def explain(ledger: Ledger, filters: Sequence[Filter]) -> str:
    """Say why no node passes, the filter that refused most first.

    A node counts where it failed first, so the counts add up to the number of nodes.
    """
    left = ledger.present.copy()
    total = int(left.sum())
    if total == 0:
        return "no suitable node: the cluster has no nodes"
    refusals: list[tuple[int, str]] = []
    for each in filters:
        refused = left & ~each.passing
        count = int(refused.sum())
        if count:
            verb = each.one if count == 1 else each.many
            detail = f" ({each.detail(refused)})" if each.detail else ""
            noun = "node" if total == 1 else "nodes"
            refusals.append((count, f"{count} of {total} {noun} {verb}{detail}"))
            left &= each.passing
    refusals.sort(key=lambda refusal: -refusal[0])
    return "no suitable node: " + "; ".join(sentence for _, sentence in refusals)


@dataclass(frozen=True, slots=True)
class _Shortage:
    ledger: Ledger
    free: Counts
    need: int
    text: Callable[[int], str]

    def sentence(self, refused: Flags) -> str:
        rows = np.flatnonzero(refused)
        most = int(self.free[rows].max())
        tied = rows[self.free[rows] == most]
        row = int(tied[np.argmin(self.ledger.order()[tied])])
        # An overcommitted node has less than nothing free, which nobody needs to know.
        free = self.text(max(most, 0))
        return f"need {self.text(self.need)} free, most free {free} on {name_of(self.ledger, row)}"


def name_of(ledger: Ledger, row: int) -> str:
    """Return what people call the node."""
    node = ledger.node(row)
    return node.hostname or node.id
