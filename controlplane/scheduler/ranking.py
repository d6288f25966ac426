"""Which of the nodes that can take a task comes first. Pure.

Fewest tasks of the service, then fewest tasks in all, then node id. Picking greedily one
by one gives the same answer; here a whole group is picked at once. The keys of a node's
next tasks, (of the service + i, in all + i, id), rise with i, so what greedy picks are
the smallest keys of all nodes together, in their order.
"""

from dataclasses import dataclass

import numpy as np

from controlplane.scheduler.ledger import Counts


@dataclass(frozen=True, slots=True)
class Candidates:
    """The nodes that fit, as columns of equal length."""

    rows: Counts
    of_service: Counts
    in_all: Counts
    order: Counts
    room: Counts
    """How many more tasks of this kind each can take."""


@dataclass(frozen=True, slots=True)
class Picks:
    """One line for each task placed, in order."""

    rows: Counts
    of_service: Counts
    """How many tasks of the service the node had before."""
    fitting: Counts
    """Among how many nodes it was chosen."""


def pick(wanted: int, nodes: Candidates) -> Picks:
    """Pick nodes for ``wanted`` tasks, or for as many as there is room."""
    room = np.minimum(nodes.room, wanted)
    wanted = min(wanted, int(room.sum()))
    if wanted <= 1:
        return _pick_one(nodes) if wanted else _NONE
    level = _level(wanted, nodes.of_service, room)
    share = np.clip(level - nodes.of_service, 0, room)
    who = np.repeat(np.arange(len(share)), share)
    step = np.arange(len(who)) - np.repeat(np.cumsum(share) - share, share)
    had = nodes.of_service[who] + step
    ranked = np.lexsort((nodes.order[who], nodes.in_all[who] + step, had))[:wanted]
    who, step, had = who[ranked], step[ranked], had[ranked]
    filled = step + 1 == nodes.room[who]
    fitting = len(share) - (np.cumsum(filled) - filled)
    return Picks(nodes.rows[who], had, fitting)


def _level(wanted: int, of_service: Counts, room: Counts) -> int:
    """Return the lowest count up to which filling every node makes ``wanted`` places."""
    low = int(of_service.min())
    high = int(of_service.max()) + wanted
    while low < high:
        middle = (low + high) // 2
        if int(np.clip(middle - of_service, 0, room).sum()) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


def _pick_one(nodes: Candidates) -> Picks:
    best = np.flatnonzero(nodes.room > 0)
    fitting = len(best)
    for column in (nodes.of_service, nodes.in_all, nodes.order):
        values = column[best]
        best = best[values == values.min()]
    return Picks(nodes.rows[best], nodes.of_service[best], np.array([fitting], np.int64))


_EMPTY = np.zeros(0, np.int64)
_NONE = Picks(_EMPTY, _EMPTY, _EMPTY)
