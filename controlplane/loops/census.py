"""Counts what the cluster has, for Prometheus. Only the leader's figures are ever shown, so
that sums over all members are right.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from controlplane.store.cache import Cache
from estiba import wire
from estiba.model import NodeState, Task, TaskState

# Others on the event loop get their turn after so many tasks.
TASKS_AT_ONCE = 2000

PENDING = "pending"


class Census(Collector):
    def __init__(self, cache: Cache, leads: Callable[[], bool], registry: CollectorRegistry):
        self._cache = cache
        self._leads = leads
        self._desired: dict[str, int] = {}
        self._running: Counter[str] = Counter()
        self._tasks: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        registry.register(self)

    async def take(self) -> None:
        """Count anew, before the figures are collected."""
        running: Counter[str] = Counter()
        states: Counter[str] = Counter()
        for number, message in enumerate(list(self._cache.tasks.values()), start=1):
            task = wire.task(message)
            states[_state(task)] += 1
            if task.ready and not task.observed.ended and not task.lost:
                running[task.service_id] += 1
            if number % TASKS_AT_ONCE == 0:
                await asyncio.sleep(0)
        services = self._cache.services.values()
        self._desired = {each.metadata.name: each.spec.replicated.replicas for each in services}
        self._running = Counter(
            {each.metadata.name: running[each.metadata.id] for each in services}
        )
        self._tasks = states
        self._nodes = Counter(
            NodeState(each.status.state).name.lower() for each in self._cache.nodes.values()
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        desired = GaugeMetricFamily(
            "estiba_service_replicas_desired", "Replicas a service wants.", labels=["service"]
        )
        running = GaugeMetricFamily(
            "estiba_service_replicas_running",
            "Replicas of a service that run, and are healthy if they have a check.",
            labels=["service"],
        )
        tasks = GaugeMetricFamily(
            "estiba_tasks", "Tasks by what their agent last said of them.", labels=["state"]
        )
        nodes = GaugeMetricFamily("estiba_nodes", "Nodes by their state.", labels=["state"])
        if self._leads():
            for service, count in self._desired.items():
                desired.add_metric([service], count)
                running.add_metric([service], self._running[service])
            for state in (PENDING, *(each.name.lower() for each in TaskState if each)):
                tasks.add_metric([state], self._tasks[state])
            for state in (each.name.lower() for each in NodeState):
                nodes.add_metric([state], self._nodes[state])
        yield from (desired, running, tasks, nodes)


def _state(task: Task) -> str:
    """Return the state's name; a task its agent has not spoken of yet is pending."""
    return task.observed.name.lower() if task.observed else PENDING
