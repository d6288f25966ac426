"""What one node is told to have, as messages. Decides nothing: tasks say what is wanted."""

from collections.abc import Callable

from controlplane.loops.settings import NetworkSettings
from controlplane.store.cache import Cache
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1


class AssignmentBuilder:
    """Makes assignments from tasks, with the templates and address blocks they refer to."""

    def __init__(self, cache: Cache, network: NetworkSettings) -> None:
        self._cache = cache
        self._network = network

    def build(self, task: v1.Task) -> dispatch.Assignment:
        key = (task.service_id, task.template_generation)
        template = self._cache.templates.get(key)
        return dispatch.Assignment(
            task_id=task.metadata.id,
            service_id=task.service_id,
            service_name=task.metadata.name.rpartition(".")[0],
            slot=task.slot,
            template_generation=task.template_generation,
            desired=task.desired,
            # The last task of a deleted service may outlive its templates: it is only removed.
            template=template.template if template is not None else None,
            attachments=self._attachments(task.node_id),
            last_run=task.status.run,
            last_seq=task.status.seq,
            namespace=task.metadata.namespace,
        )

    def _attachments(self, node_id: str) -> list[v1.NetworkAttachment]:
        network = self._network
        block = self._cache.blocks.get((network.id, node_id))
        if block is None:
            return []
        return [
            v1.NetworkAttachment(
                network_id=network.id,
                network_name=network.name,
                cidr=str(network.cidr),
                block=block.cidr,
                vni=network.vni,
                mtu=network.mtu,
            )
        ]


class NodeAssignments:
    """What one session has told its node, and what has changed since.

    Feed it every change of the node's tasks in the order of revisions; `take` returns
    what the node does not know yet. Cost grows with this node's changes alone.
    """

    def __init__(self, build: Callable[[v1.Task], dispatch.Assignment], *, epoch: int) -> None:
        self._build = build
        self._epoch = epoch
        self._told: dict[str, tuple[int, str]] = {}
        self._changed: dict[str, v1.Task | None] = {}
        self._revision = 0

    def complete(self, tasks: list[v1.Task], *, revision: int) -> dispatch.Assignments:
        """Return everything the node is to have, as the session's first assignments."""
        self._revision = revision
        self._changed.clear()
        message = dispatch.Assignments(epoch=self._epoch, revision=revision, complete=True)
        for task in tasks:
            self._add(message, task)
        return message

    def change(self, task_id: str, task: v1.Task | None, *, revision: int) -> bool:
        """Take in a change; say whether there is something to take."""
        # The complete assignments may have been made from a view ahead of this change.
        if revision > self._revision:
            self._changed[task_id] = task
        return bool(self._changed)

    def take(self, *, revision: int) -> dispatch.Assignments | None:
        """Return the changes up to ``revision``, None when the node knows them all."""
        changed, self._changed = self._changed, {}
        message = dispatch.Assignments(epoch=self._epoch, revision=revision)
        for task_id, task in changed.items():
            if task is not None:
                self._add(message, task)
            elif self._told.pop(task_id, None) is not None:
                message.forget.append(task_id)
        self._revision = max(self._revision, revision)
        return message if message.set or message.forget else None

    def _add(self, message: dispatch.Assignments, task: v1.Task) -> None:
        assignment = self._build(task)
        # Templates never change under one generation: only these can be news.
        blocks = ",".join(attachment.block for attachment in assignment.attachments)
        news = (int(assignment.desired), blocks)
        if self._told.get(task.metadata.id) != news:
            self._told[task.metadata.id] = news
            message.set.append(assignment)
