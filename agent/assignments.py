"""Decide what a message of assignments changes on this node.

Pure. What was accepted never goes back: not to an older epoch, not to an older
revision, and no task's desired state falls within an epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.errors import StaleError
from estiba.v1 import dispatcher_pb2 as dispatch


@dataclass(frozen=True, slots=True)
class Known:
    """The assignments this node has accepted, by task id."""

    epoch: int = 0
    revision: int = 0
    tasks: Mapping[str, dispatch.Assignment] = field(default_factory=dict)

    def message(self) -> dispatch.Assignments:
        """Everything as one complete message, for the disk."""
        return dispatch.Assignments(
            epoch=self.epoch, revision=self.revision, complete=True, set=self.tasks.values()
        )


@dataclass(frozen=True, slots=True)
class Assign:
    """Have this task, new or changed."""

    assignment: dispatch.Assignment
    revision: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Have nothing of this task any more, and say nothing of it."""

    task_id: str


Change = Assign | Forget


def accept(known: Known, offered: dispatch.Assignments) -> tuple[Known, list[Change]]:
    """Return what is known afterwards, and what that changes.

    The same message accepted twice changes nothing the second time.

    Raises:
        StaleError: the message is of an older epoch or revision, or it is a mere change
            of an epoch of which the complete assignments never came.
    """
    _refuse_stale(known, offered)
    same_epoch = offered.epoch == known.epoch
    tasks = {} if offered.complete else dict(known.tasks)
    changes: list[Change] = []
    for assignment in offered.set:
        before = known.tasks.get(assignment.task_id)
        after = _risen(before, assignment) if before is not None and same_epoch else assignment
        tasks[assignment.task_id] = after
        if after != before:
            changes.append(Assign(after, offered.revision))
    for task_id in offered.forget:
        tasks.pop(task_id, None)
    changes += [Forget(task_id) for task_id in known.tasks if task_id not in tasks]
    return Known(offered.epoch, offered.revision, tasks), changes


def _refuse_stale(known: Known, offered: dispatch.Assignments) -> None:
    if offered.epoch < known.epoch:
        raise StaleError(f"assignments of epoch {offered.epoch}, but {known.epoch} was accepted")
    if offered.epoch > known.epoch:
        if not offered.complete:
            raise StaleError(f"changes of epoch {offered.epoch} before its complete assignments")
    elif offered.revision < known.revision:
        raise StaleError(
            f"assignments of revision {offered.revision}, but {known.revision} was accepted"
        )


def _risen(before: dispatch.Assignment, after: dispatch.Assignment) -> dispatch.Assignment:
    if after.desired >= before.desired:
        return after
    risen = dispatch.Assignment()
    risen.CopyFrom(after)
    risen.desired = before.desired
    return risen
