"""From a plan's actions to transactions: changes applied to the messages that were read.

All changes of one slot stay in one transaction, so that no reader ever sees a slot with
two wanted tasks; each transaction is valid alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from controlplane.orchestrator import (
    Action,
    CreateTask,
    ForgetTask,
    MarkFound,
    MarkLost,
    RemoveTask,
    StopTask,
)
from controlplane.scheduler import Placement
from controlplane.store import codec, keys
from controlplane.store.protocol import MAX_TXN_OPS, Condition, Delete, Put, Unchanged, Write
from estiba import wire
from estiba.model import DEFAULT_NAMESPACE, ServiceId, TaskId, task_name
from estiba.v1 import types_pb2 as v1

CHANGED_BY = "estibad"

Slot = tuple[ServiceId, int]


@dataclass(slots=True)
class Draft:
    """One task as it will be, and as it was read."""

    task: v1.Task
    read_at: int
    """Revision of its key; 0: it does not exist yet."""
    block: Unchanged | None = None
    """The address block of the node it is placed on."""
    changed: bool = False
    forgotten: bool = False

    @property
    def id(self) -> TaskId:
        return TaskId(self.task.metadata.id)

    @property
    def slot(self) -> Slot:
        return ServiceId(self.task.service_id), self.task.slot

    @property
    def conditions(self) -> list[Condition]:
        unchanged: list[Condition] = [Unchanged(keys.task(self.id), self.read_at)]
        return unchanged if self.block is None else [*unchanged, self.block]

    @property
    def writes(self) -> list[Write]:
        if self.forgotten:
            return [Delete(keys.task(self.id)), Delete(keys.task_status(self.id))]
        return [Put(keys.task(self.id), codec.encode(self.task))]


def create(action: CreateTask, service: v1.Service, *, now_s: float) -> Draft:
    """Draft a new task of the service, not placed yet."""
    now = wire.timestamp(now_s)
    task = v1.Task(
        metadata=v1.Metadata(
            id=action.task_id,
            namespace=service.metadata.namespace or DEFAULT_NAMESPACE,
            name=task_name(service.metadata.name, action.slot),
            generation=1,
            created_at=now,
            changed_at=now,
            changed_by=CHANGED_BY,
        ),
        service_id=action.service_id,
        slot=action.slot,
        template_generation=action.template_generation,
        attempt=action.attempt,
        desired=v1.DESIRED_STATE_RUNNING,
        reservations=service.spec.template.resources.reservations,
    )
    draft = Draft(task, read_at=0, changed=True)
    wire.add_note(task, action.reason, now_s=now_s, revision=service.metadata.revision)
    return draft


def read(task: v1.Task, *, read_at: int) -> Draft:
    """Draft a change of a task that exists."""
    copy = v1.Task()
    copy.CopyFrom(task)
    return Draft(copy, read_at=read_at)


def change(draft: Draft, action: Action, *, now_s: float, revision: int) -> None:
    """Apply one action to a task that exists; desired states only rise."""
    task = draft.task
    match action:
        case StopTask():
            task.desired = max(task.desired, v1.DESIRED_STATE_SHUTDOWN)
        case RemoveTask():
            task.desired = max(task.desired, v1.DESIRED_STATE_REMOVE)
        case ForgetTask():
            draft.forgotten = True
        case MarkLost():
            task.lost_since.CopyFrom(wire.timestamp(now_s))
        case MarkFound():
            task.ClearField("lost_since")
        case CreateTask():
            raise ValueError(f"task {draft.id} exists already")
    _touch(draft, action.reason, now_s=now_s, revision=revision)


def put_in_place(
    draft: Draft, placement: Placement, block: Unchanged | None, *, now_s: float, revision: int
) -> None:
    """Give the task its node, or write down why it has none."""
    if placement.node_id is not None:
        draft.task.node_id = placement.node_id
        draft.task.placement = placement.reason
        draft.block = block
        draft.changed = True
        draft.task.metadata.changed_at.CopyFrom(wire.timestamp(now_s))
    elif not draft.task.notes or draft.task.notes[-1].message != placement.reason:
        _touch(draft, placement.reason, now_s=now_s, revision=revision)


def _touch(draft: Draft, reason: str, *, now_s: float, revision: int) -> None:
    draft.changed = True
    draft.task.metadata.generation += 1
    draft.task.metadata.changed_at.CopyFrom(wire.timestamp(now_s))
    draft.task.metadata.changed_by = CHANGED_BY
    wire.add_note(draft.task, reason, now_s=now_s, revision=revision)


@dataclass(slots=True)
class Transaction:
    drafts: list[Draft] = field(default_factory=list)
    conditions: set[Condition] = field(default_factory=set)
    writes: list[Write] = field(default_factory=list)


def transactions(drafts: Iterable[Draft], *, reserved: int) -> Iterator[Transaction]:
    """Pack changed drafts, slot by slot, into as few transactions as etcd allows.

    Args:
        reserved: how many conditions whoever commits will add.
    """
    slots: dict[Slot, list[Draft]] = {}
    for draft in drafts:
        if draft.changed:
            slots.setdefault(draft.slot, []).append(draft)
    most = MAX_TXN_OPS - reserved
    current = Transaction()
    for together in slots.values():
        conditions = {each for draft in together for each in draft.conditions}
        writes = [each for draft in together for each in draft.writes]
        full = max(len(current.conditions | conditions), len(current.writes) + len(writes)) > most
        if full and current.drafts:
            yield current
            current = Transaction()
        current.drafts += together
        current.conditions |= conditions
        current.writes += writes
    if current.drafts:
        yield current
