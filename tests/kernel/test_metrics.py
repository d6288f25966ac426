"""What containers use, read from real cgroups with real processes in them."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agent.metrics.exporter import Exporter
from agent.metrics.usage import UsageMeter
from agent.runtime.cgroups import Cgroups
from agent.runtime.limits import Limits
from estiba.kit.clock import SystemClock
from estiba.model import Resources
from tests.support.metrics import Table, view
from tests.support.waiting import eventually

HALF_A_CPU = Limits(nano_cpus=500_000_000)
LABELS = {"node": "n1", "service": "web", "task": "svc.1.1.1", "slot": "1"}


@dataclass(slots=True)
class Node:
    """Cgroups of one node, and processes that want a whole processor each."""

    cgroups: Cgroups
    busy: list[subprocess.Popen[bytes]]

    def run(self, container_id: str, limits: Limits) -> None:
        self.cgroups.create(container_id, limits)
        enter = "".join(f"echo 0 >{file}; " for file in self.cgroups.entrances(container_id))
        script = f"{enter} while :; do :; done"
        self.busy.append(subprocess.Popen(["sh", "-c", script]))
        eventually(lambda: self.cgroups.stats(container_id).cpu_ns > 0, within_s=5, what="it runs")

    def end(self, container_id: str) -> None:
        self.kill()
        eventually(
            lambda: self.cgroups.remove(container_id), within_s=5, what="the cgroup is removed"
        )

    def kill(self) -> None:
        for process in self.busy:
            process.kill()
            process.wait()
        self.busy.clear()


@pytest.fixture
def node() -> Iterator[Node]:
    cgroups = Cgroups(f"estiba-metrics-{os.getpid()}")
    cgroups.prepare()
    node = Node(cgroups, [])
    yield node
    node.kill()
    for name in cgroups.names():
        node.end(name)
    cgroups.retire()


async def test_a_container_that_is_limited_to_half_a_processor_is_seen_to_use_half(
    node: Node,
) -> None:
    node.run("svc.1.1.1-r1", HALF_A_CPU)
    reader = UsageMeter(tasks=Table([view()]), cgroups=node.cgroups, clock=SystemClock())
    await reader.read()
    await asyncio.sleep(1.0)

    usage = await reader.read()

    # The limit holds for each tenth of a second; on a busy machine it may get less than that.
    assert 50_000_000 < usage.tasks["svc.1.1.1"].nano_cpus < 600_000_000
    assert usage.tasks["svc.1.1.1"].pids == 1
    assert usage.node.nano_cpus > 50_000_000
    assert usage.tasks["svc.1.1.1"].memory_bytes < usage.node.memory_bytes


async def test_a_counter_goes_on_over_two_runs_and_the_limit_shows_as_throttling(
    node: Node, tmp_path: Path
) -> None:
    table = Table([view()])
    exporter = Exporter(
        node="n1",
        capacity=Resources(),
        tasks=table,
        cgroups=node.cgroups,
        connected=lambda: True,
        state_dir=tmp_path,
    )
    registry = CollectorRegistry(auto_describe=True)
    registry.register(exporter)

    async def seconds(what: str) -> float:
        await exporter.gather()
        value = registry.get_sample_value(f"estiba_container_{what}_seconds_total", LABELS)
        assert value is not None
        return value

    node.run("svc.1.1.1-r1", HALF_A_CPU)
    eventually(
        lambda: node.cgroups.stats("svc.1.1.1-r1").throttled_ns > 0,
        within_s=10,
        what="the limit holds it back",
    )
    assert await seconds("cpu_throttled") > 0
    exporter.container_ended("svc.1.1.1-r1")
    node.end("svc.1.1.1-r1")
    first = await seconds("cpu")
    table.views = [view(run=2)]
    node.run("svc.1.1.1-r2", Limits())

    assert await seconds("cpu") > first > 0
