"""Which series an agent has, and which it has no more."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agent.metrics.exporter import Exporter
from estiba.model import Resources, TaskState
from estiba.v1 import types_pb2 as v1
from tests.support.metrics import Cgroups, Stats, Table, view

CPU = "estiba_container_cpu_seconds_total"
LABELS = {"node": "n1", "service": "web", "task": "svc.1.1.1", "slot": "1"}


class Agent:
    def __init__(self, state_dir: Path) -> None:
        self.table = Table()
        self.cgroups = Cgroups()
        self.connected = True
        self.registry = CollectorRegistry(auto_describe=True)
        self.exporter = Exporter(
            node="n1",
            capacity=Resources(1_500_000_000, 4096),
            tasks=self.table,
            cgroups=self.cgroups,
            connected=lambda: self.connected,
            state_dir=state_dir,
        )
        self.registry.register(self.exporter)

    async def value(self, series: str, **labels: str) -> float | None:
        await self.exporter.gather()
        return self.registry.get_sample_value(series, LABELS | labels)

    async def node_value(self, series: str, **labels: str) -> float | None:
        await self.exporter.gather()
        return self.registry.get_sample_value(series, {"node": "n1"} | labels)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


async def test_a_running_container_has_its_use_with_node_service_task_and_slot(
    agent: Agent,
) -> None:
    agent.table.views = [view(run=3)]
    agent.cgroups.held["svc.1.1.1-r3"] = Stats(2_500_000_000, 500_000_000, 4096, 7, 1)
    assert await agent.value(CPU) == 2.5
    assert await agent.value("estiba_container_cpu_throttled_seconds_total") == 0.5
    assert await agent.value("estiba_container_memory_working_set_bytes") == 4096
    assert await agent.value("estiba_container_pids") == 7
    assert await agent.value("estiba_container_oom_kills_total") == 1
    assert await agent.value("estiba_container_runs_total") == 3


async def test_between_two_runs_counters_stay_and_the_rest_is_gone(agent: Agent) -> None:
    agent.table.views = [view()]
    agent.cgroups.held["svc.1.1.1-r1"] = Stats(cpu_ns=1_000_000_000)
    assert await agent.value(CPU) == 1.0
    agent.cgroups.held["svc.1.1.1-r1"] = Stats(cpu_ns=3_000_000_000)
    agent.exporter.container_ended("svc.1.1.1-r1")
    agent.cgroups.held.clear()
    agent.table.views = [view(state=TaskState.WAITING)]
    assert await agent.value(CPU) == 3.0
    assert await agent.value("estiba_container_pids") is None


async def test_the_next_run_goes_on_from_where_the_last_ended_even_under_a_new_agent(
    agent: Agent, tmp_path: Path
) -> None:
    agent.cgroups.held["svc.1.1.1-r1"] = Stats(cpu_ns=3_000_000_000)
    agent.exporter.container_ended("svc.1.1.1-r1")
    for successor in (agent, Agent(tmp_path)):
        successor.table.views = [view(run=2)]
        successor.cgroups.held = {"svc.1.1.1-r2": Stats(cpu_ns=1_000_000_000)}
        assert await successor.value(CPU) == 4.0


async def test_an_exit_told_twice_or_of_a_container_that_is_gone_changes_nothing(
    agent: Agent,
) -> None:
    agent.table.views = [view()]
    agent.cgroups.held["svc.1.1.1-r1"] = Stats(cpu_ns=1_000_000_000)
    agent.exporter.container_ended("svc.1.1.1-r1")
    agent.exporter.container_ended("svc.1.1.1-r1")
    agent.cgroups.held.clear()
    agent.exporter.container_ended("svc.1.1.1-r1")
    assert await agent.value(CPU) == 1.0


@pytest.mark.parametrize("state", [state for state in TaskState if state.ended])
async def test_a_task_that_has_ended_has_no_series_but_is_counted(
    agent: Agent, state: TaskState
) -> None:
    agent.table.views = [view()]
    agent.cgroups.held["svc.1.1.1-r1"] = Stats(cpu_ns=1)
    assert await agent.value(CPU) is not None
    agent.table.views = [view(state=state)]
    assert await agent.value(CPU) is None
    assert await agent.node_value("estiba_node_tasks", state=state.name.lower()) == 1


async def test_the_series_of_a_removed_task_go_with_it(agent: Agent) -> None:
    agent.table.views = [view(), view("svc.2.1.1")]
    assert await agent.value(CPU, task="svc.2.1.1", slot="2") == 0
    agent.table.views = [view()]
    assert await agent.value(CPU, task="svc.2.1.1", slot="2") is None
    assert await agent.value(CPU) == 0


async def test_a_task_that_has_not_begun_has_no_series(agent: Agent) -> None:
    agent.table.views = [view(state=TaskState.ACCEPTED, run=0)]
    assert await agent.value(CPU) is None
    assert await agent.node_value("estiba_node_tasks", state="accepted") == 1


@pytest.mark.parametrize(
    ("health", "value"),
    [
        (v1.HEALTH_UNSPECIFIED, None),
        (v1.HEALTH_STARTING, 0),
        (v1.HEALTH_HEALTHY, 1),
        (v1.HEALTH_UNHEALTHY, 0),
    ],
)
async def test_only_a_task_with_a_health_check_is_healthy_or_not(
    agent: Agent, health: v1.Health.ValueType, value: float | None
) -> None:
    agent.table.views = [view(health=health)]
    assert await agent.value("estiba_container_healthy") == value


async def test_the_node_tells_its_capacity_and_whether_a_member_serves_it(agent: Agent) -> None:
    assert await agent.node_value("estiba_node_cpus") == 1.5
    assert await agent.node_value("estiba_node_memory_bytes") == 4096
    assert await agent.node_value("estiba_agent_session_connected") == 1
    agent.connected = False
    assert await agent.node_value("estiba_agent_session_connected") == 0
