"""Which tasks are not as they should be, and which of them is replaced next. Pure.

Stop first, one slot at a time: a slot that works is given up only while all others work. A
slot that does not work anyway is put right at once.
"""

from collections.abc import Mapping

from controlplane.orchestrator.draft import Draft
from controlplane.orchestrator.lost import node_name, node_of
from controlplane.scheduler.constraints import first_unmet, readable
from estiba.model import Availability, Node, NodeId, NodeState, Service, Task


def outdated_reason(service: Service, task: Task, node: Node | None) -> str | None:
    """Say why the task must give way to another; None if it is as it should be.

    ``node`` is None while the task is not placed.
    """
    if task.template_generation != service.template_generation:
        return f"template {service.template_generation} replaces {task.template_generation}"
    return None if node is None else misplaced_reason(service, node)


def misplaced_reason(service: Service, node: Node) -> str | None:
    """Say why no task of the service may stay on the node; None if it may."""
    if node.availability is Availability.DRAIN:
        return f"node {node_name(node)} is drained"
    # A constraint that this version cannot read places no task, and moves none.
    unmet = first_unmet(node, readable(service.constraints))
    if unmet is not None:
        return f"node {node_name(node)} no longer matches {unmet}"
    return None


def serves(task: Task, node: Node | None) -> bool:
    """Tell whether the task is a replica that counts, as far as can be known now."""
    return task.ready and not task.lost and node is not None and node.state is NodeState.READY


def replace_outdated(draft: Draft, service: Service, nodes: Mapping[NodeId, Node]) -> None:
    """Stop every outdated task that does not serve, and one that does if all slots serve.

    What an unknown node has is left alone until the node is back, or gone: it may serve.
    """
    serving = 0
    outdated: list[tuple[Task, str]] = []
    for occupants in draft.slots().values():
        for task in occupants:
            if not task.wanted:
                continue
            node = node_of(task, nodes)
            up = serves(task, node)
            serving += up
            reason = outdated_reason(service, task, node)
            if reason is None:
                continue
            if up:
                outdated.append((task, reason))
            elif node is None or node.state is NodeState.READY:
                draft.stop(task, reason)
    if outdated and serving == service.replicas:
        draft.stop(*outdated[0])
