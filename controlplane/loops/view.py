"""What the planner decides on: the cache's objects as frozen values, kept up change by change.

Knows which services a change concerns, so that only those are looked at again.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from controlplane.scheduler import Ledger
from controlplane.store.cache import Cache, CacheBatch, CacheChange
from estiba import wire
from estiba.kit.clock import Clock
from estiba.model import Node, NodeId, NodeState, Service, ServiceId, Task, TaskId
from estiba.v1 import types_pb2 as v1


class View:
    def __init__(self, cache: Cache, clock: Clock) -> None:
        self._cache = cache
        self._clock = clock
        self._tasks: dict[str, tuple[v1.Task, Task]] = {}
        self._pending: defaultdict[ServiceId, set[str]] = defaultdict(set)
        self._vanished: dict[NodeId, float] = {}
        self.ledger = Ledger()
        self.nodes: dict[NodeId, Node] = {}
        self.generations: defaultdict[ServiceId, set[int]] = defaultdict(set)
        self.gone_nodes: set[NodeId] = set()
        """Nodes without object that have, or may have, an address block."""
        self.revision = 0

    def load(self) -> set[ServiceId]:
        """Begin again from the cache as it is; return every service there is anything of."""
        self._tasks.clear()
        self._pending.clear()
        self.ledger = Ledger()
        self.nodes.clear()
        self.generations.clear()
        self.revision = self._cache.revision
        for node in self._cache.nodes.values():
            self._put_node(node)
        for task in self._cache.tasks.values():
            self._put_task(task)
        for service_id, generation in self._cache.templates:
            self.generations[ServiceId(service_id)].add(generation)
        self.gone_nodes = {
            NodeId(node_id) for _, node_id in self._cache.blocks if node_id not in self._cache.nodes
        }
        of_tasks = {model.service_id for _, model in self._tasks.values()}
        return of_tasks | self.generations.keys() | set(map(ServiceId, self._cache.services))

    def take(self, batch: CacheBatch) -> set[ServiceId]:
        """Take in changes; return the services that they concern."""
        concerned: set[ServiceId] = set()
        for change in batch.changes:
            match change.kind:
                case "service":
                    concerned.add(ServiceId(change.id))
                case "task":
                    concerned |= self._task_changed(change)
                case "node" | "presence":
                    concerned |= self._node_changed(NodeId(change.id))
                case "template":
                    self._template_changed(change)
        self.revision = batch.revision
        return concerned

    def service(self, service_id: ServiceId) -> Service | None:
        message = self._cache.services.get(service_id)
        return wire.service(message) if message is not None else None

    def tasks_of(self, service_id: ServiceId) -> list[Task]:
        return [self.task(message) for message in self._cache.tasks_of(service_id)]

    def task(self, message: v1.Task) -> Task:
        known = self._tasks.get(message.metadata.id)
        if known is not None and known[0] is message:
            return known[1]
        return wire.task(message)

    def recount(self, task_ids: Iterable[TaskId]) -> None:
        """Count tasks as the store has them, whatever the ledger was promised."""
        for task_id in task_ids:
            message = self._cache.tasks.get(task_id)
            if message is None:
                self.ledger.drop_task(task_id)
            else:
                self.ledger.put_task(self.task(message))

    def _put_task(self, message: v1.Task) -> Task:
        task = wire.task(message)
        self._tasks[task.id] = (message, task)
        self.ledger.put_task(task)
        pending = self._pending[task.service_id]
        if task.wanted and task.node_id is None:
            pending.add(task.id)
        else:
            pending.discard(task.id)
            if not pending:
                del self._pending[task.service_id]
        return task

    def _task_changed(self, change: CacheChange) -> set[ServiceId]:
        known = self._tasks.get(change.id)
        before = known[1] if known is not None else None
        message = self._cache.tasks.get(change.id)
        if message is None:
            self._tasks.pop(change.id, None)
            self.ledger.drop_task(TaskId(change.id))
            if before is None:
                return set()
            self._pending[before.service_id].discard(change.id)
            concerned = {before.service_id}
            freed = before.holds_resources
        else:
            after = self._put_task(message)
            concerned = {after.service_id} if after != before else set()
            freed = before is not None and before.holds_resources and not after.holds_resources
        if freed:
            concerned |= {service_id for service_id, tasks in self._pending.items() if tasks}
        return concerned

    def _put_node(self, message: v1.Node) -> Node:
        node = wire.node(message)
        if node.state is NodeState.UNKNOWN:
            # Its grace counts from when we saw it vanish, however long ago it was recorded.
            since_s = self._vanished.setdefault(node.id, self._clock.now())
            node = replace(node, gone_since_s=since_s)
        else:
            self._vanished.pop(node.id, None)
        self.nodes[node.id] = node
        self.gone_nodes.discard(node.id)
        self.ledger.put_node(node)
        return node

    def _node_changed(self, node_id: NodeId) -> set[ServiceId]:
        before = self.nodes.get(node_id)
        message = self._cache.nodes.get(node_id)
        if message is not None:
            after = self._put_node(message)
            if after == before:
                return set()
            concerned = {service_id for service_id, tasks in self._pending.items() if tasks}
        else:
            if before is None:
                return set()
            del self.nodes[node_id]
            self._vanished.pop(node_id, None)
            self.ledger.drop_node(node_id)
            concerned = set()
        if message is None:
            self.gone_nodes.add(node_id)
        on_node = self._cache.tasks_on(node_id)
        return concerned | {ServiceId(task.service_id) for task in on_node}

    def _template_changed(self, change: CacheChange) -> None:
        template = change.after or change.before
        if not isinstance(template, v1.Template):
            raise TypeError(f"a change of a template carries a {type(template).__name__}")
        generations = self.generations[ServiceId(template.service_id)]
        if change.after is not None:
            generations.add(template.generation)
        else:
            generations.discard(template.generation)
            if not generations:
                del self.generations[ServiceId(template.service_id)]
