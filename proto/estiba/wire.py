"""Between messages and the model: the only place that knows both.

Pure. There is no way back for stored objects: whoever changes one changes the
message that was read, so that fields this version does not know stay in it.
"""

from enum import IntEnum
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from estiba.kit.text import plain
from estiba.model import (
    Availability,
    DesiredState,
    Node,
    NodeId,
    NodeState,
    Resources,
    Service,
    ServiceId,
    Task,
    TaskId,
    TaskState,
)
from estiba.v1 import types_pb2 as v1

NOTES_KEPT = 20
# A transaction, of which etcd takes 1.5 MiB, writes up to 128 tasks with all their notes.
NOTE_LENGTH = 400

E = TypeVar("E", bound=IntEnum)


def resources(message: v1.Reservations) -> Resources:
    return Resources(message.nano_cpus, message.memory_bytes)


def service(message: v1.Service) -> Service:
    spec = message.spec
    return Service(
        id=ServiceId(message.metadata.id),
        name=message.metadata.name,
        replicas=spec.replicated.replicas,
        template_generation=message.template_generation,
        constraints=tuple(spec.placement.constraints),
        reservations=resources(spec.template.resources.reservations),
        revision=message.metadata.revision,
    )


def task(message: v1.Task) -> Task:
    status = message.status
    observed = _known(TaskState, status.state)
    return Task(
        id=TaskId(message.metadata.id),
        service_id=ServiceId(message.service_id),
        slot=message.slot,
        template_generation=message.template_generation,
        attempt=message.attempt,
        node_id=NodeId(message.node_id) if message.node_id else None,
        desired=_known(DesiredState, message.desired or DesiredState.RUNNING),
        observed=observed,
        run=status.run,
        ready=status.ready,
        lost=message.HasField("lost_since"),
        reservations=resources(message.reservations),
        pending_reason=_last_note(message) if not message.node_id else "",
        message=status.message,
        ended_at_s=seconds(status.at) if observed.ended else 0.0,
    )


def node(message: v1.Node) -> Node:
    status = message.status
    state = NodeState(status.state)
    return Node(
        id=NodeId(message.metadata.id),
        hostname=message.metadata.name,
        state=state,
        availability=Availability(message.spec.availability or Availability.ACTIVE),
        labels=dict(message.metadata.labels),
        capacity=Resources(status.description.nano_cpus, status.description.memory_bytes),
        gone_since_s=0.0 if state is NodeState.READY else seconds(status.since),
    )


def newer(one: v1.TaskStatus, other: v1.TaskStatus) -> v1.TaskStatus:
    """Return the greater of two reports on one task; on a tie, ``one``."""
    return max(one, other, key=report_order)


def report_order(status: v1.TaskStatus) -> tuple[bool, int, int, int]:
    """Order reports on one task: a later one is greater, whatever order they arrive in.

    Nothing follows REMOVED, whatever run it speaks of: an agent that lost its
    journal confirms the removal of a task without knowing its runs.
    """
    return (status.state == v1.TASK_STATE_REMOVED, status.run, status.state, status.seq)


def add_note(
    notes: "v1.Task | v1.TaskStatus", message: str, *, now_s: float, revision: int
) -> None:
    """Append a reason, unless the last one says the same; keep the last twenty."""
    message = plain(message, most=NOTE_LENGTH)
    if notes.notes and notes.notes[-1].message == message:
        return
    notes.notes.append(v1.Note(at=timestamp(now_s), message=message, revision=revision))
    del notes.notes[:-NOTES_KEPT]


def timestamp(seconds_since_epoch: float) -> Timestamp:
    # Through microseconds: floats carry no more, and the JSON form stays short.
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds_since_epoch * 1_000_000))
    return stamp


def seconds(moment: Timestamp) -> float:
    """Return seconds since the epoch; 0.0 for an absent time."""
    return moment.seconds + moment.nanos / 1e9


def duration(length_s: float) -> Duration:
    length = Duration()
    length.FromMicroseconds(round(length_s * 1_000_000))
    return length


def duration_s(length: Duration) -> float:
    return length.seconds + length.nanos / 1e9


def _last_note(message: v1.Task) -> str:
    return message.notes[-1].message if message.notes else ""


def _known(states: type[E], number: int) -> E:
    """Return the state of this number; for one of a later version, the last known before it.

    The states of tasks are ordered, with gaps: what a later version puts into a gap has
    come as far as the state below, as far as we can tell.
    """
    try:
        return states(number)
    except ValueError:
        before = [state.value for state in states if state.value < number]
        return states(max(before, default=min(states).value))
