"""How long a slot waits after attempts that ended by themselves. Pure.

Agents restart containers on their own, within a task. Here are only tasks that an agent gave
up for good: refused, failed or complete.
"""

from collections.abc import Sequence

from estiba.model import DesiredState, NodeId, Task, TaskState

FIRST_DELAY_S = 1.0
MOST_DELAY_S = 60.0

# Of ended tasks, a slot keeps this many: enough to tell a streak of failures from an accident.
ENDED_KEPT = 4

_DOUBLINGS_TO_MOST = 6


def ended_by_itself(task: Task) -> bool:
    """Tell whether the task ended though nobody told it to."""
    if not task.observed.ended:
        return False
    return task.desired <= DesiredState.RUNNING or task.observed < TaskState.SHUTDOWN


def streak(occupants: Sequence[Task], template_generation: int) -> list[Task]:
    """Return the slot's latest attempts under the template, as far as each ended by itself.

    ``occupants`` are the slot's tasks, oldest first; the answer is newest first.
    """
    latest: list[Task] = []
    for task in reversed(occupants):
        if task.desired is DesiredState.REMOVE:
            continue
        if task.template_generation != template_generation or not ended_by_itself(task):
            break
        latest.append(task)
    return latest


def retry_at_s(latest: Sequence[Task]) -> float:
    """Return when the slot may try again after this streak, seconds since the epoch."""
    if not latest:
        return 0.0
    newest = latest[0]
    # What is older has been reaped. Where all that is kept failed, so did what came before.
    failures = newest.attempt if len(latest) >= ENDED_KEPT else len(latest)
    doublings = min(failures - 1, _DOUBLINGS_TO_MOST)
    return newest.ended_at_s + min(FIRST_DELAY_S * float(1 << doublings), MOST_DELAY_S)


def refused_by(latest: Sequence[Task]) -> frozenset[NodeId]:
    """Return the nodes whose agents can never run this."""
    return frozenset(
        task.node_id
        for task in latest
        if task.observed is TaskState.REJECTED and task.node_id is not None
    )
