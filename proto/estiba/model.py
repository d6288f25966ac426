"""The domain as frozen values: what the deciding code reads and returns.

Pure: no I/O, no clock. `estiba.wire` turns messages into these values. Stored
messages are never rebuilt from them: a change is applied to the message that was
read, so that fields this version does not know survive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NewType

ServiceId = NewType("ServiceId", str)
TaskId = NewType("TaskId", str)
NodeId = NewType("NodeId", str)

DEFAULT_NAMESPACE = "default"


class TaskState(IntEnum):
    """How far a task's current run has come; the numbers are those of the messages."""

    NEW = 0
    ACCEPTED = 64
    PREPARING = 128
    READY = 192
    STARTING = 256
    RUNNING = 320
    WAITING = 384
    COMPLETE = 512
    FAILED = 576
    REJECTED = 640
    SHUTDOWN = 704
    REMOVED = 768

    @property
    def ended(self) -> bool:
        """Nothing of the task runs or will run."""
        return self >= TaskState.COMPLETE


class DesiredState(IntEnum):
    """The furthest point the control plane wants a task to reach. It only rises."""

    READY = 192
    RUNNING = 320
    SHUTDOWN = 704
    REMOVE = 768


class NodeState(IntEnum):
    UNKNOWN = 0
    READY = 1
    DOWN = 2


class Availability(IntEnum):
    ACTIVE = 1
    PAUSE = 2
    DRAIN = 3


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of what a node has. The unit of ``nano_cpus`` is a billionth of a processor."""

    nano_cpus: int = 0
    memory_bytes: int = 0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(self.nano_cpus + other.nano_cpus, self.memory_bytes + other.memory_bytes)

    def __sub__(self, other: "Resources") -> "Resources":
        return Resources(self.nano_cpus - other.nano_cpus, self.memory_bytes - other.memory_bytes)


@dataclass(frozen=True, slots=True)
class Service:
    """A service as the orchestrator needs it; what a task runs stays in the message."""

    id: ServiceId
    name: str
    replicas: int
    template_generation: int = 1
    constraints: tuple[str, ...] = ()
    reservations: Resources = Resources()
    revision: int = 0
    """The store's revision of the spec: cause of the changes that follow from it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One slot's stay on one node under one template, as far as decisions depend on it."""

    id: TaskId
    service_id: ServiceId
    slot: int
    template_generation: int
    attempt: int
    node_id: NodeId | None = None
    desired: DesiredState = DesiredState.RUNNING
    observed: TaskState = TaskState.NEW
    run: int = 0
    ready: bool = False
    lost: bool = False
    """Its node is gone; `lost_since` is set on the message."""
    reservations: Resources = Resources()
    pending_reason: str = ""
    """The last reason why it fits nowhere, while `node_id` is None."""
    message: str = ""
    """What the agent last said of it."""
    ended_at_s: float = 0.0
    """When the agent reported the final state, seconds since the epoch; 0 while it has not."""

    @property
    def wanted(self) -> bool:
        """Still meant to run, and it may."""
        return self.desired <= DesiredState.RUNNING and not self.observed.ended

    @property
    def holds_resources(self) -> bool:
        """Counts against its node: placed, and not known to have ended."""
        return self.node_id is not None and not self.observed.ended


@dataclass(frozen=True, slots=True)
class Node:
    id: NodeId
    hostname: str
    state: NodeState = NodeState.READY
    availability: Availability = Availability.ACTIVE
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Resources = Resources()
    gone_since_s: float = 0.0
    """Since when it is down or unknown, seconds since the epoch; 0 while ready."""

    @property
    def takes_tasks(self) -> bool:
        return self.state is NodeState.READY and self.availability is Availability.ACTIVE


def task_id(service_id: ServiceId, slot: int, template_generation: int, attempt: int) -> TaskId:
    """Name a task: created only if absent under this id, a stale view cannot duplicate it."""
    return TaskId(f"{service_id}.{slot}.{template_generation}.{attempt}")


def task_name(service_name: str, slot: int) -> str:
    """Name a task for people, such as ``web.1``."""
    return f"{service_name}.{slot}"
