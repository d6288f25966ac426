"""A plan while it is being made: the actions so far, and the tasks as they will be after them.

Pure. Each question of the orchestrator is asked of what the earlier answers leave, so that
one plan is enough.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from controlplane.orchestrator.actions import (
    Action,
    CreateTask,
    Decision,
    ForgetTask,
    MarkFound,
    MarkLost,
    RemoveTask,
    StopTask,
)
from estiba.model import DesiredState, Task, TaskId


class Draft:
    """Changed only within one call of `plan_service`."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks: dict[TaskId, Task] = {task.id: task for task in tasks}
        self._slots: dict[int, list[Task]] | None = None
        self._forgotten: dict[tuple[int, int], int] = {}
        self._vacated: dict[int, str] = {}
        self._actions: list[Action] = []
        self._wake_after_s: float | None = None

    def tasks(self) -> list[Task]:
        return list(self._tasks.values())

    def slots(self) -> dict[int, list[Task]]:
        """Return the tasks of each slot, oldest first; lowest slot first."""
        if self._slots is None:
            slots: defaultdict[int, list[Task]] = defaultdict(list)
            for task in self._tasks.values():
                slots[task.slot].append(task)
            for occupants in slots.values():
                if len(occupants) > 1:
                    occupants.sort(key=age)
            self._slots = dict(sorted(slots.items()))
        return self._slots

    def next_attempt(self, slot: int, template_generation: int) -> int:
        """Return one more than the highest attempt known, forgotten ones included."""
        highest = self._forgotten.get((slot, template_generation), 0)
        for task in self.slots().get(slot, ()):
            if task.template_generation == template_generation:
                highest = max(highest, task.attempt)
        return highest + 1

    def vacated_because(self, slot: int) -> str | None:
        """Return why this plan took a task out of the slot, if it did."""
        return self._vacated.get(slot)

    def create(self, action: CreateTask) -> None:
        self._actions.append(action)

    def stop(self, task: Task, reason: str) -> None:
        """Stop a task; one that no node has heard of is forgotten at once."""
        if task.node_id is None:
            self.forget(task, reason)
            return
        self._actions.append(StopTask(task.id, reason))
        self._vacated[task.slot] = reason
        self._put(replace(self._tasks[task.id], desired=DesiredState.SHUTDOWN))

    def remove(self, task: Task, reason: str) -> None:
        self._actions.append(RemoveTask(task.id, reason))
        self._put(replace(self._tasks[task.id], desired=DesiredState.REMOVE))

    def forget(self, task: Task, reason: str) -> None:
        self._actions.append(ForgetTask(task.id, reason))
        if task.wanted:
            self._vacated[task.slot] = reason
        key = (task.slot, task.template_generation)
        self._forgotten[key] = max(self._forgotten.get(key, 0), task.attempt)
        self._slots = None
        del self._tasks[task.id]

    def mark_lost(self, task: Task, reason: str) -> None:
        self._actions.append(MarkLost(task.id, reason))
        self._put(replace(self._tasks[task.id], lost=True))

    def mark_found(self, task: Task, reason: str) -> None:
        self._actions.append(MarkFound(task.id, reason))
        self._put(replace(self._tasks[task.id], lost=False))

    def wake_after(self, delay_s: float) -> None:
        """Have the service looked at again in so long, or earlier."""
        if self._wake_after_s is None or delay_s < self._wake_after_s:
            self._wake_after_s = delay_s

    def decision(self) -> Decision:
        return Decision(tuple(self._actions), self._wake_after_s)

    def _put(self, task: Task) -> None:
        self._tasks[task.id] = task
        self._slots = None


def age(task: Task) -> tuple[int, int]:
    """Order the tasks of one slot by when they were made, oldest first."""
    return task.template_generation, task.attempt
