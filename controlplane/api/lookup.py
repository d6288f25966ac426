"""Find objects by what people call them: an id or a name."""

from controlplane.errors import NotFoundError
from controlplane.orchestrator import summarize
from controlplane.store.cache import Cache
from estiba import wire
from estiba.model import DesiredState, NodeId
from estiba.v1 import types_pb2 as v1


def service(cache: Cache, id_or_name: str) -> v1.Service:
    """Raises NotFoundError."""
    found = cache.services.get(id_or_name) or cache.service_named(id_or_name)
    if found is None:
        raise NotFoundError(f"there is no service {id_or_name}")
    return found


def node(cache: Cache, id_or_name: str) -> v1.Node:
    """Raises NotFoundError."""
    found = cache.nodes.get(id_or_name) or cache.node_named(id_or_name)
    if found is None:
        raise NotFoundError(f"there is no node {id_or_name}")
    return found


def task(cache: Cache, task_id: str) -> v1.Task:
    """Raises NotFoundError."""
    found = cache.tasks.get(task_id)
    if found is None:
        raise NotFoundError(f"there is no task {task_id}")
    return found


def with_status(cache: Cache, stored: v1.Service) -> v1.Service:
    """Return a copy of the service with its status, computed from its tasks as they are."""
    tasks = [wire.task(each) for each in cache.tasks_of(stored.metadata.id)]
    on_nodes = {each.node_id for each in tasks if each.node_id is not None}
    nodes = {
        node_id: wire.node(cache.nodes[node_id]) for node_id in on_nodes if node_id in cache.nodes
    }
    summary = summarize(wire.service(stored), tasks, nodes)
    copy = v1.Service()
    copy.CopyFrom(stored)
    copy.status.CopyFrom(
        v1.ServiceStatus(
            desired=summary.desired,
            running=summary.running,
            updated=summary.updated,
            converged=summary.converged,
            message=summary.message,
        )
    )
    return copy


def with_tasks(cache: Cache, stored: v1.Node) -> v1.Node:
    """Return a copy of the node with its status, and the number of tasks wanted on it."""
    copy = v1.Node()
    copy.CopyFrom(stored)
    seen = cache.nodes.get(NodeId(stored.metadata.id))
    if seen is not None:
        copy.status.CopyFrom(seen.status)
    wanted = [
        each
        for each in cache.tasks_on(stored.metadata.id)
        if each.desired <= DesiredState.RUNNING and not wire.task(each).observed.ended
    ]
    copy.status.tasks = len(wanted)
    return copy
