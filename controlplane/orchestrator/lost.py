"""Which nodes are gone, and so which tasks are lost, and which are found again. Pure."""

from collections.abc import Mapping

from controlplane.orchestrator.draft import Draft
from estiba.model import Node, NodeId, NodeState, Task

# A node is unknown when its member has died or its agent has stopped: so long its agent may take to
# find another member, or to start again.
UNKNOWN_GRACE_S = 10.0


def node_name(node: Node) -> str:
    """Return what people call the node."""
    return node.hostname or node.id


def gone_reason(node: Node, now_s: float, grace_s: float) -> str | None:
    """Say why the node counts as gone; None while it does not.

    The presence layer has waited before it calls a node down, so that needs no grace.
    """
    if node.state is NodeState.DOWN:
        return f"node {node_name(node)} is down"
    if node.state is NodeState.UNKNOWN and now_s - node.gone_since_s >= grace_s:
        return f"node {node_name(node)} has been unknown for more than {grace_s:.0f} s"
    return None


def mark_lost(draft: Draft, nodes: Mapping[NodeId, Node], now_s: float, grace_s: float) -> None:
    """Mark what is on a node that is gone; come back when a grace ends."""
    for task in draft.tasks():
        node = node_of(task, nodes)
        if node is None or node.state is NodeState.READY or task.lost or task.observed.ended:
            continue
        reason = gone_reason(node, now_s, grace_s)
        if reason is not None:
            draft.mark_lost(task, reason)
        else:
            draft.wake_after(node.gone_since_s + grace_s - now_s)


def mark_found(draft: Draft, nodes: Mapping[NodeId, Node]) -> None:
    """Unmark what is on a node that is back, whether it is still wanted or to be stopped."""
    for task in draft.tasks():
        node = node_of(task, nodes) if task.lost else None
        if node is not None and node.state is NodeState.READY:
            draft.mark_found(task, f"node {node_name(node)} is back")


def node_of(task: Task, nodes: Mapping[NodeId, Node]) -> Node | None:
    return None if task.node_id is None else nodes.get(task.node_id)
