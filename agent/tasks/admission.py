"""Decide whether this node can ever run a task. Pure: what may pass is no reason to refuse."""

from agent.runtime.limits import Limits, faults
from agent.tasks.results import bytes_for_people, signal_number
from estiba.model import Resources
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

MOST_NETWORKS = 1


def refusal(assignment: dispatch.Assignment, capacity: Resources) -> str:
    """Return why the task can never run on a node of this capacity, "" if it can."""
    template = assignment.template
    found = faults(limits_of(template.resources.limits))
    if template.container.stop_signal:
        try:
            signal_number(template.container.stop_signal)
        except ValueError as fault:
            found.append(str(fault))
    if not template.container.image:
        found.append("it names no image")
    found += [
        f"env {each!r} is not NAME=VALUE" for each in template.container.env if not _pair(each)
    ]
    if len(assignment.attachments) > MOST_NETWORKS:
        found.append(
            f"it wants {len(assignment.attachments)} networks, and {MOST_NETWORKS} is most"
        )
    found += _too_large(template.resources.reservations, capacity)
    return "; ".join(found)


def limits_of(limits: v1.Limits) -> Limits:
    return Limits(nano_cpus=limits.nano_cpus, memory_bytes=limits.memory_bytes, pids=limits.pids)


def _pair(entry: str) -> bool:
    name, equals, _ = entry.partition("=")
    return bool(name and equals)


def _too_large(wanted: v1.Reservations, capacity: Resources) -> list[str]:
    found = []
    if wanted.memory_bytes > capacity.memory_bytes:
        found.append(
            f"it reserves {bytes_for_people(wanted.memory_bytes)} of memory,"
            f" and the node has {bytes_for_people(capacity.memory_bytes)}"
        )
    if wanted.nano_cpus > capacity.nano_cpus:
        found.append(
            f"it reserves {wanted.nano_cpus / 1e9:g} processors,"
            f" and the node has {capacity.nano_cpus / 1e9:g}"
        )
    return found
