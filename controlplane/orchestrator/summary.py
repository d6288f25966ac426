"""What a service's status says: how many replicas there are, and what is in the way. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controlplane.orchestrator.draft import age
from controlplane.orchestrator.lost import node_of
from controlplane.orchestrator.restarts import ended_by_itself
from controlplane.orchestrator.rollout import outdated_reason
from estiba.model import Node, NodeId, Service, Task, TaskState, task_name


@dataclass(frozen=True, slots=True)
class ServiceSummary:
    desired: int
    running: int
    """Tasks that run, and are healthy if they have a check: surplus ones count too."""
    updated: int
    """How many of these run the current template where they should."""
    converged: bool
    """``desired`` tasks run as they should, and nothing else does."""
    message: str
    """When not converged: the most telling reason, one sentence."""


def summarize(
    service: Service, tasks: Iterable[Task], nodes: Mapping[NodeId, Node]
) -> ServiceSummary:
    """Sum up a service as it is now; what a lost node has is not counted."""
    here = [task for task in tasks if not task.lost]
    running = [task for task in here if task.ready and not task.observed.ended]
    updated = [task for task in running if _as_wanted(service, task, nodes)]
    # What the store still calls wanted or placed may hold a container, ready or not.
    held = [task for task in here if task.wanted or task.holds_resources]
    slots = {task.slot for task in updated}
    converged = len(slots) == len(updated) == len(held) == service.replicas and all(
        1 <= slot <= service.replicas for slot in slots
    )
    message = "" if converged else _obstacle(service, here, len(updated), len(held))
    return ServiceSummary(service.replicas, len(running), len(updated), converged, message)


def _as_wanted(service: Service, task: Task, nodes: Mapping[NodeId, Node]) -> bool:
    return task.wanted and outdated_reason(service, task, node_of(task, nodes)) is None


def _obstacle(service: Service, tasks: Iterable[Task], updated: int, held: int) -> str:
    """Say what keeps the service from converging: a complaint of its slots, else the counts."""
    latest: dict[int, Task] = {}
    for task in tasks:
        known = latest.get(task.slot)
        if known is None or age(task) > age(known):
            latest[task.slot] = task
    complaints: defaultdict[str, list[int]] = defaultdict(list)
    for slot, task in sorted(latest.items()):
        complaint = _complaint(task)
        if complaint and 1 <= slot <= service.replicas:
            complaints[complaint].append(slot)
    if complaints:
        complaint, slots = max(complaints.items(), key=lambda item: len(item[1]))
        others = f" and {len(slots) - 1} more" if len(slots) > 1 else ""
        return f"{task_name(service.name, slots[0])}{others}: {complaint}"
    if updated < service.replicas:
        return f"{updated} of {service.replicas} replicas run as wanted"
    return f"{_tasks(held - updated)} still stopping"


def _complaint(task: Task) -> str:
    """Return what is wrong with a slot's latest task; "" if it is on its way, or well."""
    if task.wanted and task.node_id is None:
        return task.pending_reason
    if task.wanted and not task.ready:
        waiting = task.observed is TaskState.WAITING
        return task.message or ("waiting to be started again" if waiting else "")
    if ended_by_itself(task):
        return task.message or f"ended {task.observed.name.lower()}"
    return ""


def _tasks(count: int) -> str:
    return "1 task is" if count == 1 else f"{count} tasks are"
