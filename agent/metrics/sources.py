"""What metrics need to know of the rest of the agent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from estiba.v1 import types_pb2 as v1


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task that this node has, as it stands now."""

    task_id: str
    service_name: str
    slot: int
    container_id: str
    """The container of its current run, which need not exist any more, or yet."""
    status: v1.TaskStatus


class TaskTable(Protocol):
    def tasks(self) -> Sequence[TaskView]:
        """Return all tasks, those that have ended and are kept as history included.

        Called on the event loop. Empty only while nothing is known: before the agent has
        read what it left on disk, or on a node without tasks.
        """


class ContainerStats(Protocol):
    """What one container has used since its start, or uses now."""

    @property
    def cpu_ns(self) -> int: ...
    @property
    def throttled_ns(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def pids(self) -> int: ...
    @property
    def oom_kills(self) -> int: ...


class Cgroups(Protocol):
    def stats(self, container_id: str) -> ContainerStats:
        """Read a container's cgroup; from any thread.

        Raises:
            OSError: there is no such container.
        """
