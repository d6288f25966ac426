"""Tasks and cgroups as the agent's metrics see them, made up."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.metrics.sources import TaskView
from estiba.model import TaskState
from estiba.v1 import types_pb2 as v1


@dataclass(frozen=True, slots=True)
class Stats:
    cpu_ns: int = 0
    throttled_ns: int = 0
    memory_bytes: int = 0
    pids: int = 1
    oom_kills: int = 0


@dataclass(slots=True)
class Cgroups:
    """Cgroups that hold whatever a test puts in."""

    held: dict[str, Stats] = field(default_factory=dict)

    def stats(self, container_id: str) -> Stats:
        if container_id not in self.held:
            raise FileNotFoundError(container_id)
        return self.held[container_id]


@dataclass(slots=True)
class Table:
    views: list[TaskView] = field(default_factory=list)

    def tasks(self) -> Sequence[TaskView]:
        return tuple(self.views)


def view(
    task_id: str = "svc.1.1.1",
    *,
    state: TaskState = TaskState.RUNNING,
    run: int = 1,
    health: v1.Health.ValueType = v1.HEALTH_UNSPECIFIED,
) -> TaskView:
    status = v1.TaskStatus(state=v1.TaskState.ValueType(state), run=run, health=health)
    slot = int(task_id.split(".")[1])
    return TaskView(task_id, "web", slot, f"{task_id}-r{run}", status)
