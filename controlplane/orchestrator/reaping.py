"""What becomes of tasks and templates that nobody wants any more. Pure."""

from collections.abc import Collection, Iterable, Mapping

from controlplane.orchestrator.draft import Draft
from controlplane.orchestrator.restarts import ENDED_KEPT
from estiba.model import DesiredState, Node, NodeId, Task, TaskState

# A slot above the number of replicas keeps its last ended task so long, for its logs.
SPARE_HISTORY_S = 3600.0

TEMPLATES_KEPT = 10


def remove_all(draft: Draft, nodes: Mapping[NodeId, Node]) -> None:
    """Take away everything a deleted service has left."""
    for task in draft.tasks():
        if task.node_id is None:
            draft.forget(task, "the service was deleted")
        elif task.node_id not in nodes:
            draft.forget(task, f"node {task.node_id} was removed")
        elif task.observed is TaskState.REMOVED:
            draft.forget(task, "nothing is left of it")
        elif task.desired is not DesiredState.REMOVE:
            draft.remove(task, "the service was deleted")


def forget_gone(draft: Draft, nodes: Mapping[NodeId, Node]) -> None:
    """Forget tasks of which no node has anything, or whose node was removed for good."""
    for task in draft.tasks():
        if task.node_id is None:
            if not task.wanted:
                draft.forget(task, "it was never placed")
        elif task.node_id not in nodes:
            draft.forget(task, f"node {task.node_id} was removed")
        elif task.desired is DesiredState.REMOVE and task.observed is TaskState.REMOVED:
            draft.forget(task, "nothing is left of it")


def reap(draft: Draft, replicas: int, now_s: float) -> None:
    """Remove ended tasks that are more history than anybody reads."""
    for slot, occupants in draft.slots().items():
        ended = [
            task
            for task in occupants
            if task.observed.ended and task.desired is not DesiredState.REMOVE
        ]
        if 1 <= slot <= replicas:
            for task in ended[:-ENDED_KEPT]:
                _let_go(draft, task, f"a slot keeps its last {ENDED_KEPT} ended tasks")
        elif ended:
            _reap_spare(draft, ended, now_s)


def _reap_spare(draft: Draft, ended: list[Task], now_s: float) -> None:
    for task in ended[:-1]:
        _let_go(draft, task, "a slot that is not wanted keeps its last ended task")
    last = ended[-1]
    left_s = last.ended_at_s + SPARE_HISTORY_S - now_s
    if left_s <= 0:
        _let_go(draft, last, "it ended over an hour ago in a slot that is not wanted")
    else:
        draft.wake_after(left_s)


def _let_go(draft: Draft, task: Task, reason: str) -> None:
    if task.observed is TaskState.REMOVED:
        draft.forget(task, reason)
    else:
        draft.remove(task, reason)


def templates_to_delete(
    generations: Collection[int], tasks: Iterable[Task], current: int | None
) -> list[int]:
    """Return which stored templates of a service nobody needs, lowest first.

    The last ten stay, and those a task refers to. ``current`` is the service's template
    generation; None: the service was deleted, and only what tasks refer to stays.
    """
    kept = {task.template_generation for task in tasks}
    if current is not None:
        kept.add(current)
        kept.update(sorted(generations)[-TEMPLATES_KEPT:])
    return sorted(set(generations) - kept)
