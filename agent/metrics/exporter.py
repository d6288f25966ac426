"""The agent's metrics: what each container uses, and how many tasks are in which state.

A task that is gone has no series. Cgroups are read at each scrape, on a thread.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.metrics.sources import Cgroups, ContainerStats, TaskTable, TaskView
from agent.metrics.totals import Totals
from estiba.model import Resources, TaskState
from estiba.v1 import types_pb2 as v1

CONTAINER_LABELS = ("node", "service", "task", "slot")
NS_PER_S = 1_000_000_000

Readings = dict[str, ContainerStats]


class Exporter(Collector):
    """Register it with a registry, and have `gather` awaited before each scrape."""

    def __init__(
        self,
        *,
        node: str,
        capacity: Resources,
        tasks: TaskTable,
        cgroups: Cgroups,
        connected: Callable[[], bool],
        state_dir: Path,
    ) -> None:
        """Take what to export.

        Args:
            node: the node's name, as the label ``node``.
            capacity: what the scheduler counts on.
            connected: whether there is a session with a member now.
            state_dir: where counts outlive the agent.
        """
        self._node = node
        self._capacity = capacity
        self._table = tasks
        self._cgroups = cgroups
        self._connected = connected
        self._totals = Totals(state_dir / "totals.jsonl")
        self._tasks: Sequence[TaskView] = ()
        self._readings: Readings = {}

    def container_ended(self, container_id: str) -> None:
        """Take the last reading of a container that has ended and still has its cgroup.

        Call it for every exit, before the container is removed; again does no harm.
        """
        with suppress(OSError):
            self._totals.observe(container_id, self._cgroups.stats(container_id))
        self._totals.save(container_id)

    async def gather(self) -> None:
        """Read all cgroups, on a thread, since there may be hundreds."""
        tasks = self._table.tasks()
        container_ids = [task.container_id for task in tasks if _has_begun(task)]
        readings = await asyncio.to_thread(self._read, container_ids)
        for container_id, reading in readings.items():
            self._totals.observe(container_id, reading)
        if tasks:
            self._totals.keep_only([task.task_id for task in tasks])
        self._tasks, self._readings = tasks, readings

    def _read(self, container_ids: Sequence[str]) -> Readings:
        readings: Readings = {}
        for container_id in container_ids:
            with suppress(OSError):
                readings[container_id] = self._cgroups.stats(container_id)
        return readings

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._gauges()
        yield from self._of_node()

    def _counters(self) -> Iterator[Metric]:
        cpu = _counter("cpu_seconds", "Processor time of all runs of the task.")
        throttled = _counter(
            "cpu_throttled_seconds", "Time in which the task was held back by its cpu limit."
        )
        kills = _counter("oom_kills", "Processes of the task killed for want of memory.")
        runs = _counter("runs", "Containers started for the task; all but the first are restarts.")
        for task in self._tasks:
            if _has_begun(task):
                used = self._totals.of(task.task_id)
                labels = self._labels(task)
                cpu.add_metric(labels, used.cpu_ns / NS_PER_S)
                throttled.add_metric(labels, used.throttled_ns / NS_PER_S)
                kills.add_metric(labels, used.oom_kills)
                runs.add_metric(labels, task.status.run)
        return iter((cpu, throttled, kills, runs))

    def _gauges(self) -> Iterator[Metric]:
        memory = _gauge(
            "memory_working_set_bytes", "Memory in use, less file pages that could be dropped."
        )
        pids = _gauge("pids", "Processes and threads of the container.")
        healthy = _gauge("healthy", "1: its health check says so; 0: not, or not yet.")
        for task in self._tasks:
            reading = self._readings.get(task.container_id)
            labels = self._labels(task)
            if reading is not None:
                memory.add_metric(labels, reading.memory_bytes)
                pids.add_metric(labels, reading.pids)
            if _has_begun(task) and task.status.health != v1.HEALTH_UNSPECIFIED:
                healthy.add_metric(labels, task.status.health == v1.HEALTH_HEALTHY)
        return iter((memory, pids, healthy))

    def _of_node(self) -> Iterator[Metric]:
        node = (self._node,)
        tasks = GaugeMetricFamily(
            "estiba_node_tasks", "Tasks on the node by observed state.", labels=("node", "state")
        )
        states = Counter(TaskState(task.status.state) for task in self._tasks)
        for state in TaskState:
            tasks.add_metric((self._node, state.name.lower()), states[state])
        yield tasks
        for name, meaning, value in (
            ("estiba_node_cpus", "Processors for tasks.", self._capacity.nano_cpus / 1e9),
            ("estiba_node_memory_bytes", "Memory for tasks.", self._capacity.memory_bytes),
            ("estiba_agent_session_connected", "1: a member serves it.", float(self._connected())),
        ):
            gauge = GaugeMetricFamily(name, meaning, labels=("node",))
            gauge.add_metric(node, value)
            yield gauge

    def _labels(self, task: TaskView) -> tuple[str, str, str, str]:
        return self._node, task.service_name, task.task_id, str(task.slot)


def _has_begun(task: TaskView) -> bool:
    """Tell whether it has had a run and has not ended for good."""
    return task.status.run > 0 and not TaskState(task.status.state).ended


def _counter(name: str, meaning: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"estiba_container_{name}", meaning, labels=CONTAINER_LABELS)


def _gauge(name: str, meaning: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"estiba_container_{name}", meaning, labels=CONTAINER_LABELS)
