"""Answer what the node and its containers use now, by two looks a moment apart.

Nothing is measured until somebody asks. The look of the last answer serves as the first
of the next, if that comes soon.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from agent.metrics import machine
from agent.metrics.machine import MachineStats
from agent.metrics.sources import Cgroups, ContainerStats, TaskTable
from estiba.kit.clock import Clock
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

# The machine's own clock ticks every 10 ms: a shorter interval would say little.
SHORTEST_S = 0.2
LONGEST_S = 10.0


@dataclass(frozen=True, slots=True)
class Look:
    at_s: float
    node: MachineStats
    tasks: dict[str, tuple[str, ContainerStats]]
    """By task id: which container, and what it has used."""


class UsageMeter:
    def __init__(self, *, tasks: TaskTable, cgroups: Cgroups, clock: Clock) -> None:
        self._table = tasks
        self._cgroups = cgroups
        self._clock = clock
        self._last: Look | None = None
        self._answer = dispatch.NodeUsage()
        self._reading = asyncio.Lock()

    async def read(self) -> dispatch.NodeUsage:
        """Measure over at most the last ten seconds, and at least the next fifth of one."""
        async with self._reading:
            age_s = LONGEST_S if self._last is None else self._clock.monotonic() - self._last.at_s
            if age_s >= SHORTEST_S:
                before = self._last
                if before is None or age_s >= LONGEST_S:
                    before = await self._look()
                    await self._clock.sleep(SHORTEST_S)
                self._last = await self._look()
                self._answer = usage_between(before, self._last)
            return self._answer

    async def _look(self) -> Look:
        containers = {task.task_id: task.container_id for task in self._table.tasks()}
        return await asyncio.to_thread(self._read, containers)

    def _read(self, containers: dict[str, str]) -> Look:
        tasks: dict[str, tuple[str, ContainerStats]] = {}
        at_s = self._clock.monotonic()
        node = machine.read()
        for task_id, container_id in containers.items():
            with suppress(OSError):
                tasks[task_id] = container_id, self._cgroups.stats(container_id)
        return Look(at_s, node, tasks)


def usage_between(before: Look, after: Look) -> dispatch.NodeUsage:
    """Return the rates between two looks; a container that is new since counts from its start."""
    seconds = max(after.at_s - before.at_s, 1e-3)
    usage = dispatch.NodeUsage(
        node=v1.Usage(
            nano_cpus=_rate(after.node.cpu_ns - before.node.cpu_ns, seconds),
            memory_bytes=after.node.memory_bytes,
            pids=after.node.pids,
        )
    )
    for task_id, (container_id, stats) in after.tasks.items():
        known = before.tasks.get(task_id)
        used_before = known[1].cpu_ns if known is not None and known[0] == container_id else 0
        usage.tasks[task_id].CopyFrom(
            v1.Usage(
                nano_cpus=_rate(stats.cpu_ns - used_before, seconds),
                memory_bytes=stats.memory_bytes,
                pids=stats.pids,
            )
        )
    return usage


def _rate(used_ns: int, seconds: float) -> int:
    return max(round(used_ns / seconds), 0)
