"""Decide how the tasks of a replicated service must change. Pure.

A slot is occupied by a task that is wanted, or that was told to stop and has not ended on a
node that is there. Every vacant slot gets a task; everything else only vacates slots.
"""

from collections.abc import Mapping, Sequence

from controlplane.orchestrator.actions import CreateTask, Decision
from controlplane.orchestrator.draft import Draft, age
from controlplane.orchestrator.lost import (
    UNKNOWN_GRACE_S,
    gone_reason,
    mark_found,
    mark_lost,
    node_name,
    node_of,
)
from controlplane.orchestrator.reaping import forget_gone, reap, remove_all
from controlplane.orchestrator.restarts import (
    ended_by_itself,
    refused_by,
    retry_at_s,
    streak,
)
from controlplane.orchestrator.rollout import outdated_reason, replace_outdated
from estiba.model import Node, NodeId, NodeState, Service, Task, task_id


def plan_service(
    service: Service | None,
    tasks: Sequence[Task],
    nodes: Mapping[NodeId, Node],
    *,
    now_s: float,
    grace_s: float = UNKNOWN_GRACE_S,
) -> Decision:
    """Decide what to do about one service now.

    Args:
        service: as it is wanted; None once it has been deleted.
        tasks: every task of it that is stored, ended ones too.
        nodes: every node object there is, for a task on any other is forgotten. The
            ``gone_since_s`` of an unknown node is when the leader saw it vanish, or when
            its term began, whichever is later.
        now_s: seconds since the epoch.
        grace_s: for how long a node may be unknown before its tasks are lost.

    Returns:
        The actions, in the order in which to apply them. Once they are applied, and until
        something changes or the wake-up is due, planning again returns none.
    """
    draft = Draft(tasks)
    if service is None:
        remove_all(draft, nodes)
        return draft.decision()
    forget_gone(draft, nodes)
    mark_lost(draft, nodes, now_s, grace_s)
    _settle_slots(draft, service, nodes, now_s, grace_s)
    mark_found(draft, nodes)
    replace_outdated(draft, service, nodes)
    _fill_slots(draft, service, nodes, now_s)
    reap(draft, service.replicas, now_s)
    return draft.decision()


def _settle_slots(
    draft: Draft, service: Service, nodes: Mapping[NodeId, Node], now_s: float, grace_s: float
) -> None:
    """Leave at most one wanted task in a slot, on a node that is not gone, and none above."""
    for slot, occupants in draft.slots().items():
        wanted = [task for task in occupants if task.wanted]
        if not 1 <= slot <= service.replicas:
            for task in wanted:
                draft.stop(task, f"scaled down to {service.replicas}")
            continue
        if len(wanted) > 1:
            # The one that works stays, else the oldest; a lost one gives way to its successor.
            wanted.sort(key=lambda task: (task.lost, not task.ready, age(task)))
            for task in wanted[1:]:
                draft.stop(task, f"slot {slot} belongs to task {wanted[0].id}")
        if wanted and wanted[0].lost:
            node = node_of(wanted[0], nodes)
            if node is not None and node.state is not NodeState.READY:
                # It may be back in a grace of its own: what was given up once stays given up.
                again = f"node {node_name(node)} is unknown again"
                draft.stop(wanted[0], gone_reason(node, now_s, grace_s) or again)


def _fill_slots(draft: Draft, service: Service, nodes: Mapping[NodeId, Node], now_s: float) -> None:
    slots = draft.slots()
    generation = service.template_generation
    for slot in range(1, service.replicas + 1):
        occupants = slots.get(slot, [])
        if any(_occupies(task) for task in occupants):
            continue
        latest = streak(occupants, generation)
        wait_s = retry_at_s(latest) - now_s
        if wait_s > 0:
            draft.wake_after(wait_s)
            continue
        attempt = draft.next_attempt(slot, generation)
        draft.create(
            CreateTask(
                task_id=task_id(service.id, slot, generation, attempt),
                service_id=service.id,
                slot=slot,
                template_generation=generation,
                attempt=attempt,
                reason=draft.vacated_because(slot) or _why(service, occupants, nodes),
                avoid=refused_by(latest),
            )
        )


def _occupies(task: Task) -> bool:
    return task.wanted or (task.holds_resources and not task.lost)


def _why(service: Service, occupants: Sequence[Task], nodes: Mapping[NodeId, Node]) -> str:
    """Say why a slot that is vacant gets a task, from what its last task was."""
    if not occupants:
        replicas = "1 replica" if service.replicas == 1 else f"{service.replicas} replicas"
        return f"{service.name} wants {replicas}"
    last = occupants[-1]
    if ended_by_itself(last):
        said = f": {last.message}" if last.message else ""
        return f"attempt {last.attempt} ended {last.observed.name.lower()}{said}"
    node = node_of(last, nodes)
    if last.lost and node is not None:
        return f"attempt {last.attempt} was lost with node {node_name(node)}"
    return outdated_reason(service, last, node) or f"attempt {last.attempt} was stopped"
