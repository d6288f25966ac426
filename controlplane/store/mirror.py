"""Everything in the store as messages, indexed, changed by one revision at a time. Pure.

What stands under several keys is put together here: a task with its status, a node
with its status and its presence. The cost of a change does not depend on how much
there is. A message handed out is never changed afterwards, and its reader must not either.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from google.protobuf.message import DecodeError, Message

from controlplane.store import keys
from controlplane.store.protocol import Event
from estiba.v1 import types_pb2 as v1
from estiba.wire import timestamp

log = logging.getLogger(__name__)

K = TypeVar("K")
M = TypeVar("M", bound=Message)

NOT_HELD = "no member of the control plane holds its session"


@dataclass(frozen=True, slots=True)
class CacheChange:
    kind: str
    """service, task, node, presence, member, template or block."""
    id: str
    """A template's is SERVICE/GENERATION, a block's NETWORK/NODE."""
    before: Message | None
    after: Message | None


class Index:
    """Which ids stand under each value, in the order they came."""

    def __init__(self) -> None:
        self._ids: defaultdict[str, dict[str, None]] = defaultdict(dict)

    def move(self, id_: str, before: str, after: str) -> None:
        """Move an id from one value to another; "" is no value."""
        if before == after:
            return
        if before:
            ids = self._ids[before]
            del ids[id_]
            if not ids:
                del self._ids[before]
        if after:
            self._ids[after][id_] = None

    def ids(self, value: str) -> Iterable[str]:
        return self._ids.get(value, ())


class _Unchanged:
    """The object's own key did not change, only what is merged into it."""


_UNCHANGED = _Unchanged()
_Noted = Message | _Unchanged | None
_Touched = dict[tuple[str, str], _Noted]

# What lies under one key alone, or is the larger part of what is merged.
_OBJECTS: Mapping[str, tuple[str, type[Message]]] = {
    keys.SERVICES: ("service", v1.Service),
    keys.TEMPLATES: ("template", v1.Template),
    keys.TASKS: ("task", v1.Task),
    keys.NODES: ("node", v1.Node),
    keys.MEMBERS: ("member", v1.Member),
    keys.BLOCKS: ("block", v1.NodeBlock),
}


class Mirror:
    """The objects by id, and where to find them. `apply` alone changes them."""

    def __init__(self) -> None:
        self.services: dict[str, v1.Service] = {}
        self.templates: dict[tuple[str, int], v1.Template] = {}
        self.tasks: dict[str, v1.Task] = {}
        self.nodes: dict[str, v1.Node] = {}
        self.presences: dict[str, v1.Presence] = {}
        self.members: dict[str, v1.Member] = {}
        self.blocks: dict[tuple[str, str], v1.NodeBlock] = {}
        self.removed_nodes: set[str] = set()
        self.cluster: v1.Cluster | None = None
        self.leader_member_id = ""
        self.key_revisions: dict[str, int] = {}
        self.tasks_by_service = Index()
        self.tasks_by_node = Index()
        self.services_by_name = Index()
        self.nodes_by_name = Index()
        self._task_statuses: dict[str, v1.TaskStatus] = {}
        self._node_statuses: dict[str, v1.NodeStatus] = {}
        self._unknown_since_s: dict[str, float] = {}
        self._note_part: Mapping[str, Callable[[str, Event, _Touched], None]] = {
            keys.PRESENCES: self._note_presence,
            keys.TASK_STATUSES: self._note_task_status,
            keys.NODE_STATUSES: self._note_node_status,
            keys.NODES_REMOVED: self._note_removed_node,
            keys.LEADER: self._note_leader,
            keys.CLUSTER: self._note_cluster,
        }
        self._rebuild: Mapping[str, Callable[[str, _Noted, float], CacheChange | None]] = {
            "service": self._rebuild_service,
            "template": self._rebuild_template,
            "task": self._rebuild_task,
            "node": self._rebuild_node,
            "presence": self._rebuild_presence,
            "member": self._rebuild_member,
            "block": self._rebuild_block,
        }

    def apply(self, events: Iterable[Event], *, now_s: float) -> list[CacheChange]:
        """Take over the events of one revision; return how objects changed by it.

        All keys are noted before any object is put together, so that a transaction which
        writes a node down and deletes its presence makes one change, not two.
        """
        touched: _Touched = {}
        for event in events:
            if event.entry is None:
                self.key_revisions.pop(event.key, None)
            else:
                self.key_revisions[event.key] = event.entry.mod_revision
            prefix, name = _split(event.key)
            if prefix in _OBJECTS:
                kind, type_ = _OBJECTS[prefix]
                touched[kind, name] = _parse(type_, event)
            elif prefix in self._note_part:
                self._note_part[prefix](name, event, touched)
        # A node's status depends on its presence, so that comes first.
        ordered = sorted(touched.items(), key=lambda it: it[0][0] != "presence")
        rebuilt = (self._rebuild[kind](id_, noted, now_s) for (kind, id_), noted in ordered)
        return [change for change in rebuilt if change is not None]

    def _note_presence(self, node_id: str, event: Event, touched: _Touched) -> None:
        touched["presence", node_id] = _parse(v1.Presence, event)
        touched.setdefault(("node", node_id), _UNCHANGED)

    def _note_task_status(self, task_id: str, event: Event, touched: _Touched) -> None:
        _set(self._task_statuses, task_id, _parse(v1.TaskStatus, event))
        touched.setdefault(("task", task_id), _UNCHANGED)

    def _note_node_status(self, node_id: str, event: Event, touched: _Touched) -> None:
        _set(self._node_statuses, node_id, _parse(v1.NodeStatus, event))
        touched.setdefault(("node", node_id), _UNCHANGED)

    def _note_removed_node(self, node_id: str, event: Event, touched: _Touched) -> None:
        if event.entry is None:
            self.removed_nodes.discard(node_id)
        else:
            self.removed_nodes.add(node_id)

    def _note_leader(self, _: str, event: Event, touched: _Touched) -> None:
        before = self.leader_member_id
        self.leader_member_id = event.entry.value.decode() if event.entry else ""
        for member_id in {before, self.leader_member_id} - {""}:
            touched.setdefault(("member", member_id), _UNCHANGED)

    def _note_cluster(self, _: str, event: Event, touched: _Touched) -> None:
        self.cluster = _parse(v1.Cluster, event)

    def _rebuild_service(self, id_: str, noted: _Noted, now_s: float) -> CacheChange | None:
        after = cast("v1.Service | None", noted)
        if after is not None:
            after.metadata.revision = self.key_revisions[keys.service(id_)]
        before = _set(self.services, id_, after)
        self.services_by_name.move(id_, _name(before), _name(after))
        return _change("service", id_, before, after)

    def _rebuild_template(self, id_: str, noted: _Noted, now_s: float) -> CacheChange | None:
        after = cast("v1.Template | None", noted)
        service_id, _, generation = id_.rpartition("/")
        number = int(generation)
        before = _set(self.templates, (service_id, number), after)
        return _change("template", f"{service_id}/{number}", before, after)

    def _rebuild_task(self, id_: str, noted: _Noted, now_s: float) -> CacheChange | None:
        after = _or_copy(v1.Task, noted, self.tasks.get(id_))
        if after is not None:
            status_key = keys.task_status(id_)
            after.metadata.revision = max(
                self.key_revisions[keys.task(id_)], self.key_revisions.get(status_key, 0)
            )
            _merge(after, self._task_statuses.get(id_))
        before = _set(self.tasks, id_, after)
        self.tasks_by_service.move(
            id_, before.service_id if before else "", after.service_id if after else ""
        )
        self.tasks_by_node.move(
            id_, before.node_id if before else "", after.node_id if after else ""
        )
        return _change("task", id_, before, after)

    def _rebuild_node(self, id_: str, noted: _Noted, now_s: float) -> CacheChange | None:
        after = _or_copy(v1.Node, noted, self.nodes.get(id_))
        if after is not None:
            after.metadata.revision = self.key_revisions[keys.node(id_)]
            _merge(after, self._status_of_node(id_, now_s))
        else:
            self._unknown_since_s.pop(id_, None)
        before = _set(self.nodes, id_, after)
        self.nodes_by_name.move(id_, _name(before), _name(after))
        return _change("node", id_, before, after)

    def _status_of_node(self, node_id: str, now_s: float) -> v1.NodeStatus:
        """Present: ready. Else what was recorded: down. Neither: unknown, since we saw it."""
        status = v1.NodeStatus()
        stored = self._node_statuses.get(node_id)
        if stored is not None:
            status.CopyFrom(stored)
        presence = self.presences.get(node_id)
        status.member_id = presence.member_id if presence else ""
        if presence is None and status.state != v1.NODE_STATE_DOWN:
            status.state = v1.NODE_STATE_UNKNOWN
            since_s = self._unknown_since_s.setdefault(node_id, now_s)
            status.since.CopyFrom(timestamp(since_s))
            status.message = NOT_HELD
            return status
        self._unknown_since_s.pop(node_id, None)
        if presence is not None and status.state != v1.NODE_STATE_READY:
            status.state = v1.NODE_STATE_READY
            status.since.CopyFrom(timestamp(now_s))
            status.message = ""
        return status

    def _rebuild_presence(self, id_: str, noted: _Noted, now_s: float) -> CacheChange | None:
        after = cast("v1.Presence | None", noted)
        return _change("presence", id_, _set(self.presences, id_, after), after)

    def _rebuild_member(self, id_: str, noted: _Noted, now_s: float) -> CacheChange | None:
        after = _or_copy(v1.Member, noted, self.members.get(id_))
        if after is not None:
            after.leader = id_ == self.leader_member_id
        return _change("member", id_, _set(self.members, id_, after), after)

    def _rebuild_block(self, id_: str, noted: _Noted, now_s: float) -> CacheChange | None:
        after = cast("v1.NodeBlock | None", noted)
        network_id, _, node_id = id_.partition("/")
        return _change("block", id_, _set(self.blocks, (network_id, node_id), after), after)


def _split(key: str) -> tuple[str, str]:
    """Split a key into the prefix of its kind and the name below it."""
    end = key.find("/", len(keys.ROOT)) + 1
    return (key[:end], key[end:]) if end else (key, "")


def _parse(type_: type[M], event: Event) -> M | None:
    if event.entry is None:
        return None
    try:
        return type_.FromString(event.entry.value)
    except DecodeError:
        # One broken value must not stop the control plane of everything else.
        log.exception("%s holds no %s; it is left out", event.key, type_.DESCRIPTOR.name)
        return None


def _set(objects: dict[K, M], id_: K, after: M | None) -> M | None:
    """Put the object in its place, None takes it out; return the one before."""
    before = objects.pop(id_, None) if after is None else objects.get(id_)
    if after is not None:
        objects[id_] = after
    return before


def _or_copy(type_: type[M], noted: _Noted, before: M | None) -> M | None:
    """Return what was noted; if only a part changed, a copy of the object before."""
    if not isinstance(noted, _Unchanged):
        return cast("M | None", noted)
    if before is None:
        return None
    copy = type_()
    copy.CopyFrom(before)
    return copy


def _merge(whole: v1.Task | v1.Node, status: Message | None) -> None:
    whole.ClearField("status")
    if status is not None:
        merged: Message = whole.status
        merged.CopyFrom(status)


def _name(message: v1.Service | v1.Node | None) -> str:
    if message is None:
        return ""
    return f"{message.metadata.namespace}/{message.metadata.name}"


def _change(
    kind: str, id_: str, before: Message | None, after: Message | None
) -> CacheChange | None:
    if before is None and after is None:
        return None
    return CacheChange(kind, id_, before, after)
