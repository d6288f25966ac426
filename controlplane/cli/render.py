"""What people see: tables of services, tasks and nodes, and the reasons for their states. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.cli.units import show_bytes, show_cpus, show_span
from estiba.kit.text import plain
from estiba.v1 import control_pb2, types_pb2

NOTHING = "-"

_TASK_STATES = {
    types_pb2.TASK_STATE_UNSPECIFIED: "assigned",
    types_pb2.TASK_STATE_ACCEPTED: "accepted",
    types_pb2.TASK_STATE_PREPARING: "preparing",
    types_pb2.TASK_STATE_READY: "ready",
    types_pb2.TASK_STATE_STARTING: "starting",
    types_pb2.TASK_STATE_RUNNING: "running",
    types_pb2.TASK_STATE_WAITING: "waiting",
    types_pb2.TASK_STATE_COMPLETE: "complete",
    types_pb2.TASK_STATE_FAILED: "failed",
    types_pb2.TASK_STATE_REJECTED: "rejected",
    types_pb2.TASK_STATE_SHUTDOWN: "shut down",
    types_pb2.TASK_STATE_REMOVED: "removed",
}
_DESIRED_STATES = {
    types_pb2.DESIRED_STATE_READY: "ready",
    types_pb2.DESIRED_STATE_RUNNING: "running",
    types_pb2.DESIRED_STATE_SHUTDOWN: "shut down",
    types_pb2.DESIRED_STATE_REMOVE: "removed",
}
_HEALTHS = {
    types_pb2.HEALTH_STARTING: "health starting",
    types_pb2.HEALTH_HEALTHY: "healthy",
    types_pb2.HEALTH_UNHEALTHY: "unhealthy",
}
_NODE_STATES = {
    types_pb2.NODE_STATE_UNKNOWN: "unknown",
    types_pb2.NODE_STATE_READY: "ready",
    types_pb2.NODE_STATE_DOWN: "down",
}
_AVAILABILITIES = {
    types_pb2.AVAILABILITY_UNSPECIFIED: "active",
    types_pb2.AVAILABILITY_ACTIVE: "active",
    types_pb2.AVAILABILITY_PAUSE: "pause",
    types_pb2.AVAILABILITY_DRAIN: "drain",
}


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align columns by spaces; the last one is not padded. Cells are one line, and printable."""
    lines = [list(titles), *([" ".join(plain(cell).split()) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9


def services(found: Iterable[types_pb2.Service]) -> str:
    rows = [
        (
            service.metadata.id,
            service.metadata.name,
            "replicated",
            f"{service.status.running}/{service.spec.replicated.replicas}",
            service.spec.template.container.image,
        )
        for service in sorted(found, key=lambda service: service.metadata.name)
    ]
    return table(("ID", "NAME", "MODE", "REPLICAS", "IMAGE"), rows)


def in_order(found: Iterable[types_pb2.Task]) -> list[types_pb2.Task]:
    """Sort tasks by service and slot, and within a slot the newest first."""
    return sorted(
        found,
        key=lambda task: (task.service_id, task.slot, -task.template_generation, -task.attempt),
    )


def tasks(
    found: Iterable[types_pb2.Task],
    services: Mapping[str, types_pb2.Service],
    node_names: Mapping[str, str],
    *,
    now_s: float,
) -> str:
    rows = []
    for task in in_order(found):
        service = services.get(task.service_id)
        rows.append(
            (
                task.metadata.id,
                task_name(task, service),
                image(task, service),
                node_names.get(task.node_id, task.node_id) or NOTHING,
                _DESIRED_STATES.get(task.desired, "unknown"),
                current_state(task, now_s=now_s),
                show_cpus(task.usage.nano_cpus) if task.HasField("usage") else NOTHING,
                show_bytes(task.usage.memory_bytes) if task.HasField("usage") else NOTHING,
                reason(task),
            )
        )
    titles = (
        *("ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE"),
        *("CPU", "MEM", "REASON"),
    )
    return table(titles, rows)


def task_name(task: types_pb2.Task, service: types_pb2.Service | None) -> str:
    name = service.metadata.name if service is not None else task.service_id
    return f"{name}.{task.slot}"


def image(task: types_pb2.Task, service: types_pb2.Service | None) -> str:
    """Name the image of a task: of older generations only the digest is known."""
    if service is not None and service.template_generation == task.template_generation:
        return service.spec.template.container.image
    return task.status.image_digest[:19] or NOTHING


def current_state(task: types_pb2.Task, *, now_s: float) -> str:
    """Say how far a task has come, and for how long it has been there."""
    status = task.status
    if task.HasField("lost_since"):
        return f"lost {show_span(now_s - seconds(task.lost_since))} ago"
    if not task.node_id:
        return f"pending {show_span(now_s - seconds(task.metadata.created_at))}"
    words = _TASK_STATES.get(status.state, str(int(status.state)))
    since = status.at if status.HasField("at") else task.metadata.created_at
    if status.state == types_pb2.TASK_STATE_RUNNING:
        since = status.started_at
    words += f" {show_span(now_s - seconds(since))}"
    if status.health != types_pb2.HEALTH_UNSPECIFIED and not ended(task):
        words += f", {_HEALTHS.get(status.health, 'health unknown')}"
    if status.run > 1:
        words += f", run {status.run}"
    return words


def ended(task: types_pb2.Task) -> bool:
    return task.status.state >= types_pb2.TASK_STATE_COMPLETE


def reason(task: types_pb2.Task) -> str:
    """Return the most telling sentence about a task, "" when there is nothing to tell."""
    if not task.node_id or task.HasField("lost_since"):
        return task.notes[-1].message if task.notes else ""
    if task.status.message:
        return task.status.message
    if task.status.HasField("last_run"):
        last = task.status.last_run
        return f"run {last.run}: {last.message}" if last.message else ""
    return ""


def nodes(found: Iterable[types_pb2.Node]) -> str:
    rows = []
    for node in sorted(found, key=lambda node: node.metadata.name):
        described, usage = node.status.description, node.status.usage
        known = node.status.HasField("usage")
        rows.append(
            (
                node.metadata.id,
                node.metadata.name,
                node_state(node),
                _AVAILABILITIES[node.spec.availability],
                str(node.status.tasks),
                _share(show_cpus, usage.nano_cpus, described.nano_cpus, known=known),
                _share(show_bytes, usage.memory_bytes, described.memory_bytes, known=known),
            )
        )
    return table(("ID", "HOSTNAME", "STATUS", "AVAILABILITY", "TASKS", "CPU", "MEM"), rows)


def _share(show: Callable[[int], str], used: int, capacity: int, *, known: bool) -> str:
    return f"{show(used) if known else NOTHING} / {show(capacity)}"


def node_state(node: types_pb2.Node) -> str:
    words = _NODE_STATES.get(node.status.state, "unknown")
    ready = node.status.state == types_pb2.NODE_STATE_READY
    return words if ready or not node.status.message else f"{words}: {node.status.message}"


def cluster(answer: control_pb2.GetClusterResponse, *, now_s: float) -> str:
    """Describe the cluster and its members."""
    head = (
        f"Cluster:  {answer.cluster.name} ({answer.cluster.id})\n"
        f"Epoch:    {answer.cluster.epoch}\n"
        f"Revision: {answer.revision}\n"
        f"Version:  {answer.version}\n\n"
    )
    rows = [
        (
            member.id,
            member.address,
            "leader" if member.leader else "",
            member.version,
            f"{show_span(now_s - seconds(member.started_at))} ago",
        )
        for member in sorted(answer.members, key=lambda member: member.id)
    ]
    return head + table(("MEMBER", "ADDRESS", "ROLE", "VERSION", "STARTED"), rows)


def tokens(found: Iterable[types_pb2.JoinToken], *, now_s: float) -> str:
    rows = []
    for token in found:
        remaining_s = seconds(token.expires_at) - now_s
        rows.append(
            (
                token.metadata.id,
                f"{len(token.admitted)}/{token.uses}",
                f"in {show_span(remaining_s)}" if remaining_s > 0 else "expired",
                f"{show_span(now_s - seconds(token.metadata.created_at))} ago",
                token.metadata.changed_by,
                ", ".join(token.admitted) or NOTHING,
            )
        )
    return table(("ID", "USED", "EXPIRES", "MADE", "BY", "ADMITTED"), rows)


def offer(token: types_pb2.JoinToken) -> str:
    """Say what a new token is good for, before the command that uses it."""
    machines = "1 machine" if token.uses == 1 else f"{token.uses} machines"
    span = show_span(seconds(token.expires_at) - seconds(token.metadata.created_at))
    return f"token {token.metadata.id} admits {machines} for {span}; on each, as root:"


def join_command(answer: control_pb2.CreateJoinTokenResponse) -> str:
    """Return the line that joins a machine."""
    address = next(iter(answer.join_addresses), "HOST")
    return f"estiba node join --token {answer.text} {plain(address)}"


def programs(found: Iterable[Mapping[str, Any]], *, now_s: float) -> str:
    """Describe the programs of a local cluster, as its supervisor tells of them."""
    rows = [
        (
            program["name"],
            str(program["pid"] or NOTHING),
            program["state"],
            show_span(now_s - program["since"]),
            str(program["restarts"]),
            program["address"] or NOTHING,
            program["last_exit"],
        )
        for program in found
    ]
    return table(("PROGRAM", "PID", "STATE", "SINCE", "RESTARTS", "ADDRESS", "LAST EXIT"), rows)


def progress(service: types_pb2.Service) -> str:
    """Say in one line how far a service has come, and what is in the way."""
    status = service.status
    words = f"{service.metadata.name} {status.running}/{service.spec.replicated.replicas}"
    if status.updated < status.running:
        words += f", {status.updated} updated"
    return words if status.converged or not status.message else f"{words}: {plain(status.message)}"


def task_lines(
    service: types_pb2.Service, found: Iterable[types_pb2.Task], *, most: int, now_s: float
) -> list[str]:
    """Say in a line each how the present tasks are, those that are not ready first."""
    present = [task for task in in_order(found) if not ended(task)]
    present.sort(key=lambda task: task.status.ready)
    lines = []
    for task in present[:most]:
        why = "" if task.status.ready else plain(reason(task))
        state = current_state(task, now_s=now_s)
        lines.append(f"  {task_name(task, service)}  {state}" + (f"  {why}" if why else ""))
    if len(present) > most:
        lines.append(f"  and {len(present) - most} more")
    return lines
