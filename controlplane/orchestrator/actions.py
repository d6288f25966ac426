"""What the orchestrator may decide: frozen verbs, each with a reason a person understands.

Several actions of one plan may name the same task (`MarkLost`, then `StopTask`): apply them
in order to the one message, and write it once. Desired states only rise.
"""

from dataclasses import dataclass

from estiba.model import NodeId, ServiceId, TaskId


@dataclass(frozen=True, slots=True)
class CreateTask:
    """Store a new task, if there is none under this id, placed if it fits somewhere."""

    task_id: TaskId
    service_id: ServiceId
    slot: int
    template_generation: int
    attempt: int
    reason: str
    avoid: frozenset[NodeId] = frozenset()
    """Nodes whose agents refused earlier attempts: to be taken only if no other fits."""


@dataclass(frozen=True, slots=True)
class StopTask:
    """Raise the desired state to SHUTDOWN: stopped, logs and last status stay."""

    task_id: TaskId
    reason: str


@dataclass(frozen=True, slots=True)
class RemoveTask:
    """Raise the desired state to REMOVE: stopped, nothing of it left on the node."""

    task_id: TaskId
    reason: str


@dataclass(frozen=True, slots=True)
class ForgetTask:
    """Delete the task's keys: no node has anything of it, or the node is gone for good."""

    task_id: TaskId
    reason: str


@dataclass(frozen=True, slots=True)
class MarkLost:
    """Set `lost_since`: the node that has the task is gone."""

    task_id: TaskId
    reason: str


@dataclass(frozen=True, slots=True)
class MarkFound:
    """Clear `lost_since`: the node is back."""

    task_id: TaskId
    reason: str


Action = CreateTask | StopTask | RemoveTask | ForgetTask | MarkLost | MarkFound


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one service now, and when to look again though nothing changes."""

    actions: tuple[Action, ...]
    wake_after_s: float | None = None
    """Plan again after so long (a back-off, a grace or a history's age ends); None: never."""
