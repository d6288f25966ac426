"""The agent's exposition, as a scraper gets it, judged by Prometheus' own tool."""

from pathlib import Path

import aiohttp

from agent.metrics.exporter import Exporter
from estiba.kit.lag import LagMonitor
from estiba.kit.serve import metrics_route, registry_for, serve
from estiba.model import Resources, TaskState
from estiba.v1 import types_pb2 as v1
from tests.support.metrics import Cgroups, Stats, Table, view
from tests.support.promtool import complaints_about


async def test_promtool_finds_nothing_on_what_an_agent_serves(tmp_path: Path) -> None:
    registry = registry_for("estiba-agent")
    LagMonitor(registry)
    waiting = view("svc.2.1.1", state=TaskState.WAITING, run=4)
    exporter = Exporter(
        node="n1",
        capacity=Resources(2_000_000_000, 1 << 30),
        tasks=Table([view(health=v1.HEALTH_HEALTHY), waiting]),
        cgroups=Cgroups({"svc.1.1.1-r1": Stats(cpu_ns=123_456_789, memory_bytes=1 << 20)}),
        connected=lambda: True,
        state_dir=tmp_path,
    )
    registry.register(exporter)
    routes = [metrics_route(registry, before=exporter.gather)]
    async with (
        serve(listen="127.0.0.1:0", tls=None, routes=routes) as address,
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/metrics") as answer,
    ):
        exposition = await answer.read()
    labels = 'node="n1",service="web",slot="1",task="svc.1.1.1"'
    assert f"estiba_container_cpu_seconds_total{{{labels}}} 0.123456789".encode() in exposition
    assert complaints_about(exposition) == ""
