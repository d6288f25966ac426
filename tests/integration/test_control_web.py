"""estibad's web server: metrics that Prometheus' own tool accepts, discovery, readiness."""

import asyncio
import json
import random
from collections.abc import Iterator

import aiohttp
import pytest

from estiba.kit.clock import SystemClock
from estiba.v1 import control_pb2 as pb
from estiba.v1 import types_pb2 as v1
from tests.support.agents import SimulatedAgent
from tests.support.declaring import spec
from tests.support.estibad import ControlPlane, RemoteSessions, control_plane, eventually
from tests.support.promtool import complaints_about


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


async def fetch(
    plane: ControlPlane, path: str, *, member: int = 0, holder: str = "metrics"
) -> tuple[int, bytes]:
    context = plane.certificates.of(holder).client_context()
    url = f"https://{plane.members[member].web_address}{path}"
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, ssl=context, server_hostname="estibad.estiba") as answer,
    ):
        return answer.status, await answer.read()


async def both_ready(plane: ControlPlane) -> None:
    for member in range(2):
        async with plane.control(member=member) as control:
            await control.GetCluster(pb.GetClusterRequest())


def value(exposition: bytes, series: str) -> float | None:
    """Return the value of one series as it is written; None if there is none."""
    for line in exposition.decode().splitlines():
        if line.startswith(series + " "):
            return float(line.split()[-1])
    return None


async def test_both_members_are_ready_and_one_of_them_leads(plane: ControlPlane) -> None:
    await both_ready(plane)
    for member in range(2):
        assert (await fetch(plane, "/readyz", member=member))[0] == 200
        assert (await fetch(plane, "/healthz", member=member, holder="n1"))[0] == 200

    async def one_leads() -> bool:
        pages = [(await fetch(plane, "/metrics", member=member))[1] for member in range(2)]
        return sorted(str(value(page, "estiba_leader")) for page in pages) == ["0.0", "1.0"]

    await eventually(one_leads, within_s=10, what="one member leads")


async def test_promtool_finds_nothing_to_complain_about(plane: ControlPlane) -> None:
    await both_ready(plane)
    async with plane.control() as control:
        service = v1.Service(metadata=v1.Metadata(name="measured"), spec=spec(replicas=1))
        await control.CreateService(pb.CreateServiceRequest(service=service))
    for member in range(2):
        status, exposition = await fetch(plane, "/metrics", member=member)
        assert status == 200
        assert complaints_about(exposition) == ""


async def test_figures_of_the_cluster_come_from_the_leader_alone(plane: ControlPlane) -> None:
    await both_ready(plane)
    async with plane.channel("n1") as channel:
        sessions = RemoteSessions(channel)
        agent = SimulatedAgent(
            "node-1", lambda: [sessions], clock=SystemClock(), rng=random.Random(1)
        )
        running = asyncio.create_task(agent.run())
        async with plane.control() as control:
            service = v1.Service(metadata=v1.Metadata(name="counted"), spec=spec(replicas=3))
            await control.CreateService(pb.CreateServiceRequest(service=service))

        async def three() -> bool:
            return await sum_of(plane, 'estiba_service_replicas_running{service="counted"}') == [3]

        await eventually(three, within_s=10, what="three replicas are counted, once")
        assert await sum_of(plane, 'estiba_service_replicas_desired{service="counted"}') == [3]
        assert await sum_of(plane, 'estiba_nodes{state="ready"}') == [1]
        pages = [(await fetch(plane, "/metrics", member=member))[1] for member in range(2)]
        placed = sum(value(page, "estiba_scheduling_latency_seconds_count") or 0 for page in pages)
        assert placed >= 3
        async with plane.control() as control:
            await control.DeleteService(pb.DeleteServiceRequest(service="counted"))

        async def gone() -> bool:
            return await sum_of(plane, 'estiba_service_replicas_desired{service="counted"}') == []

        await eventually(gone, within_s=10, what="the series go with the service")
        running.cancel()
        await asyncio.wait([running])


async def sum_of(plane: ControlPlane, series: str) -> list[float]:
    """Return the series' value from every member that shows it."""
    pages = [(await fetch(plane, "/metrics", member=member))[1] for member in range(2)]
    return [found for page in pages if (found := value(page, series)) is not None]


async def test_discovery_lists_every_estibad_and_every_agent(plane: ControlPlane) -> None:
    await both_ready(plane)
    async with plane.channel("n2") as channel:
        sessions = RemoteSessions(channel)
        agent = SimulatedAgent(
            "node-2", lambda: [sessions], clock=SystemClock(), rng=random.Random(2)
        )
        agent.description.metrics_address = "10.0.0.2:7490"
        running = asyncio.create_task(agent.run())

        async def listed() -> bool:
            return b"10.0.0.2:7490" in (await fetch(plane, "/sd/targets"))[1]

        await eventually(listed, within_s=10, what="the agent is listed")
        running.cancel()
        await asyncio.wait([running])
    targets = json.loads((await fetch(plane, "/sd/targets"))[1])
    members = [each for each in targets if each["labels"]["__meta_estiba_program"] == "estibad"]
    assert [each["labels"]["__meta_estiba_member"] for each in members] == [
        "estibad-1",
        "estibad-2",
    ]
    assert [each["targets"] for each in members] == [
        [member.web_address] for member in plane.members
    ]
    (agent_target,) = [each for each in targets if each not in members]
    assert agent_target["labels"]["__meta_estiba_node"] == "node-2"


async def test_a_node_may_not_read_metrics(plane: ControlPlane) -> None:
    await both_ready(plane)
    before = await plane.metric("estiba_denied_calls_total")
    assert (await fetch(plane, "/metrics", holder="n1"))[0] == 403
    assert (await fetch(plane, "/sd/targets", holder="n1"))[0] == 403
    assert await plane.metric("estiba_denied_calls_total") == before + 2
    assert "from 127.0.0.1: node:node-1 may not read /metrics; it is for: " in plane.members[0].log
