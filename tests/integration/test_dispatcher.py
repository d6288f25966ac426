"""Agents' sessions over real gRPC and TLS: who may speak, who is heard, who is forwarded."""

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controlplane.errors import DeniedError, UnavailableError
from estiba import wire
from estiba.kit.clock import SystemClock
from estiba.v1 import control_pb2 as pb
from estiba.v1 import control_pb2_grpc, dispatcher_pb2_grpc
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from tests.support.agents import SimulatedAgent
from tests.support.declaring import spec
from tests.support.estibad import ControlPlane, RemoteSessions, control_plane, eventually

T = TypeVar("T")

if TYPE_CHECKING:
    from estiba.v1.control_pb2_grpc import ControlAsyncStub as Control


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture
async def control(plane: ControlPlane) -> AsyncIterator["Control"]:
    async with plane.control() as stub:
        yield stub


@asynccontextmanager
async def agent(plane: ControlPlane, name: str, *, member: int) -> AsyncIterator[SimulatedAgent]:
    """Run an agent that knows one member, until the block ends."""
    async with plane.channel(name, member=member) as channel:
        sessions = RemoteSessions(channel)
        seat = {"n1": "node-1", "n2": "node-2"}[name]
        simulated = SimulatedAgent(
            seat, lambda: [sessions], clock=SystemClock(), rng=random.Random(name)
        )
        simulated.on_open = lambda asked: carries.append(
            asyncio.create_task(carry(sessions, seat, asked))
        )
        carries: list[asyncio.Task[None]] = []
        running = asyncio.create_task(simulated.run())
        try:

            async def welcome() -> bool:
                return bool(simulated.welcome.session_id)

            await eventually(welcome, within_s=20, what="the agent has a session")
            yield simulated
        finally:
            for each in [running, *carries]:
                each.cancel()
            await asyncio.wait([running, *carries])


async def carry(sessions: RemoteSessions, node_id: str, asked: dispatch.Open) -> None:
    """Open the stream asked for, as an agent whose tasks all use 7 bytes and have said hello."""

    async def frames() -> AsyncIterator[dispatch.Frame]:
        yield dispatch.Frame(stream_id=asked.stream_id)
        if asked.purpose.HasField("usage"):
            usage = dispatch.NodeUsage(node=v1.Usage(memory_bytes=1000))
            yield dispatch.Frame(usage=usage)
        else:
            for task_id in asked.purpose.logs.task_ids:
                line = pb.LogLine(task_id=task_id, run=1, line=f"hello from {node_id}".encode())
                line.at.CopyFrom(wire.timestamp(1.0))
                yield dispatch.Frame(logs=pb.LogsResponse(lines=[line]))
        yield dispatch.Frame(end=dispatch.End())

    async for _ in sessions.stub.Carry(frames()):
        pass


async def ready(control: "Control", name: str) -> v1.Node:
    async with asyncio.timeout(10):
        while True:
            for node in (await control.ListNodes(pb.ListNodesRequest())).nodes:
                if node.metadata.id == name and node.status.state == v1.NODE_STATE_READY:
                    return node
            await asyncio.sleep(0.05)


async def test_a_service_runs_on_agents_of_both_members(
    plane: ControlPlane, control: "Control"
) -> None:
    async with agent(plane, "n1", member=0) as one, agent(plane, "n2", member=1) as two:
        await ready(control, "node-1")
        await ready(control, "node-2")
        service = v1.Service(metadata=v1.Metadata(name="both"), spec=spec(replicas=4))
        await control.CreateService(pb.CreateServiceRequest(service=service))

        async def converged() -> bool:
            return (await control.GetService(pb.GetServiceRequest(service="both"))).status.converged

        await eventually(converged, within_s=10, what="four replicas run")
        assert len(one.running()) == len(two.running()) == 2
        blocks = {
            task.assignment.attachments[0].block
            for simulated in (one, two)
            for task in simulated.tasks.values()
        }
        assert blocks == {"10.10.1.0/24", "10.10.2.0/24"}

        # The first member has one session; it asks the other for what only n2 has.
        responses = control.Logs(pb.LogsRequest(service="both"))
        lines = [line async for response in responses for line in response.lines]
        assert {line.line for line in lines} == {b"hello from node-1", b"hello from node-2"}
        assert {line.task_name for line in lines} == {f"both.{slot}" for slot in range(1, 5)}
        nodes = await control.ListNodes(pb.ListNodesRequest(with_usage=True))
        assert [each.status.usage.memory_bytes for each in nodes.nodes] == [1000, 1000]
        assert [each.status.tasks for each in nodes.nodes] == [2, 2]
        assert not nodes.warnings

        await control.DeleteService(pb.DeleteServiceRequest(service="both"))

        async def gone() -> bool:
            return not (await control.ListTasks(pb.ListTasksRequest())).tasks

        await eventually(gone, within_s=10, what="nothing is left of the service")

        async def forgotten() -> bool:
            return not one.tasks and not two.tasks

        await eventually(forgotten, within_s=10, what="the nodes have forgotten it")


async def test_a_node_that_does_not_answer_becomes_a_warning(
    plane: ControlPlane, control: "Control"
) -> None:
    async with agent(plane, "n2", member=1) as mute:
        await ready(control, "node-2")
        mute.on_open = lambda asked: None
        nodes = await control.ListNodes(pb.ListNodesRequest(with_usage=True))
        assert any("node-2 does not answer" in warning for warning in nodes.warnings)


@pytest.mark.parametrize("member", [0, 1])
async def test_a_reader_that_pauses_makes_the_node_pause_and_one_that_leaves_ends_its_stream(
    plane: ControlPlane, control: "Control", member: int
) -> None:
    sent, ended = 0, asyncio.Event()

    async def flood(sessions: RemoteSessions, asked: dispatch.Open) -> None:
        async def frames() -> AsyncIterator[dispatch.Frame]:
            nonlocal sent
            yield dispatch.Frame(stream_id=asked.stream_id)
            line = pb.LogLine(task_id=asked.purpose.logs.task_ids[0], line=b"x" * 65_536)
            while True:
                sent += 1
                line.at.CopyFrom(wire.timestamp(float(sent)))
                yield dispatch.Frame(logs=pb.LogsResponse(lines=[line]))

        try:
            async for _ in sessions.stub.Carry(frames()):
                pass
        except aio.AioRpcError:
            pass
        finally:
            ended.set()

    name = f"flood-{member}"
    # The user asks the first member; the node is with the first, or with the second.
    async with agent(plane, "n1", member=member) as node:
        await ready(control, "node-1")
        service = v1.Service(metadata=v1.Metadata(name=name), spec=spec(replicas=1))
        await control.CreateService(pb.CreateServiceRequest(service=service))

        async def runs() -> bool:
            return len(node.running()) == 1

        await eventually(runs, within_s=10, what="the task runs")
        async with plane.channel("n1", member=member) as bulk:
            sessions = RemoteSessions(bulk)
            carrying: list[asyncio.Task[None]] = []
            node.on_open = lambda asked: carrying.append(
                asyncio.create_task(flood(sessions, asked))
            )
            responses = control.Logs(pb.LogsRequest(service=name, follow=True))
            async with asyncio.timeout(10):
                await anext(aiter(responses))
                before = -1
                while before != sent:
                    before = sent
                    await asyncio.sleep(1)
            # What lies in buffers on the way, which are not ours, is some megabytes.
            assert sent < 1000
            responses.cancel()
            async with asyncio.timeout(5):
                await ended.wait()
            await asyncio.gather(*carrying)
        await control.DeleteService(pb.DeleteServiceRequest(service=name))


async def test_a_silent_node_is_down_within_six_seconds_and_ready_when_it_returns(
    plane: ControlPlane, control: "Control"
) -> None:
    async with agent(plane, "n1", member=0) as silent:
        await ready(control, "node-1")
        silent.connected.clear()

        async def down() -> bool:
            node = await control.GetNode(pb.GetNodeRequest(node="node-1"))
            return node.status.state == v1.NODE_STATE_DOWN

        took_s = await eventually(down, within_s=8, what="the node is down")
        assert 3.0 < took_s < 6.5
        silent.connected.set()
        await ready(control, "node-1")


async def test_a_second_session_of_a_node_ends_the_first(plane: ControlPlane) -> None:
    ended = asyncio.Event()

    async def hold(channel: aio.Channel) -> None:
        async def incoming() -> AsyncIterator[dispatch.AgentMessage]:
            yield dispatch.AgentMessage(hello=dispatch.Hello())
            await asyncio.Event().wait()

        async def send(message: dispatch.MemberMessage) -> None:
            opened.set()

        try:
            await RemoteSessions(channel).serve("node-1", incoming(), send)
        except UnavailableError:
            ended.set()

    # At the same member, and at the other one.
    for second in (0, 1):
        ended.clear()
        opened = asyncio.Event()
        async with plane.channel("n1", member=0) as one, plane.channel("n1", member=second) as two:
            first = asyncio.create_task(hold(one))
            async with asyncio.timeout(10):
                await opened.wait()
                opened.clear()
                later = asyncio.create_task(hold(two))
                await ended.wait()
                await opened.wait()
            first.cancel()
            later.cancel()
            await asyncio.wait([first, later])


async def test_a_removed_node_is_refused_for_good(plane: ControlPlane, control: "Control") -> None:
    async with agent(plane, "n2", member=1) as removed:
        await ready(control, "node-2")
        with pytest.raises(aio.AioRpcError) as refused:
            await control.RemoveNode(pb.RemoveNodeRequest(node="node-2"))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await control.RemoveNode(pb.RemoveNodeRequest(node="node-2", force=True))

        async def told() -> bool:
            return removed.refused

        await eventually(told, within_s=5, what="the agent is told")
    async with plane.channel("n2", member=0) as channel:

        async def hello() -> AsyncIterator[dispatch.AgentMessage]:
            yield dispatch.AgentMessage(hello=dispatch.Hello())

        async def send(message: dispatch.MemberMessage) -> None: ...

        with pytest.raises(DeniedError, match="node-2 was removed from the cluster"):
            await RemoteSessions(channel).serve("node-2", hello(), send)


async def test_a_node_reports_only_on_tasks_of_its_own(
    plane: ControlPlane, control: "Control"
) -> None:
    service = v1.Service(metadata=v1.Metadata(name="foreign"), spec=spec(replicas=1))
    await control.CreateService(pb.CreateServiceRequest(service=service))
    await control.UpdateNode(
        pb.UpdateNodeRequest(node="node-1", spec=v1.NodeSpec(availability=v1.AVAILABILITY_PAUSE))
    )
    async with agent(plane, "n1", member=0) as liar:
        await ready(control, "node-1")
        (task,) = (await control.ListTasks(pb.ListTasksRequest(service="foreign"))).tasks
        liar.claim(task.metadata.id, v1.TASK_STATE_RUNNING)

        async def acknowledged() -> bool:
            return liar.acknowledged > 0

        await eventually(acknowledged, within_s=5, what="the report is acknowledged")
        task = await control.GetTask(pb.GetTaskRequest(task=task.metadata.id))
        assert not task.HasField("status")
    await control.DeleteService(pb.DeleteServiceRequest(service="foreign"))


MAY: dict[str, set[str]] = {
    "user": {"control", "health", "reflection"},
    "n1": {"dispatcher", "health", "reflection"},
    "estibad-2": {"control", "peer", "health", "reflection"},
    "metrics": {"health", "reflection"},
}


@pytest.mark.parametrize("holder", MAY)
async def test_each_role_may_call_what_the_table_says_and_nothing_else(
    plane: ControlPlane, holder: str
) -> None:
    async with plane.channel(holder) as channel:
        control: Control = control_pb2_grpc.ControlStub(channel)
        agents: dispatcher_pb2_grpc.DispatcherAsyncStub = dispatcher_pb2_grpc.DispatcherStub(
            channel
        )
        peer: dispatcher_pb2_grpc.PeerAsyncStub = dispatcher_pb2_grpc.PeerStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        allowed = MAY[holder]
        codes = {
            "control": await _code(control.GetCluster(pb.GetClusterRequest())),
            "dispatcher": await _exchanged(
                agents.Carry(), dispatch.Frame(stream_id="none"), write="dispatcher" in allowed
            ),
            "peer": await _code(_first(peer.Open(dispatch.OpenRequest(node_id="none")))),
            "health": await _code(health.Check(health_pb2.HealthCheckRequest())),
            "reflection": await _exchanged(
                reflection.ServerReflectionInfo(), listing, write="reflection" in allowed
            ),
        }
    denied = {name for name, code in codes.items() if code is grpc.StatusCode.PERMISSION_DENIED}
    assert codes.keys() - denied == allowed
    # What was not denied was answered, or got as far as looking for what there is none of.
    assert {codes[name] for name in allowed} <= {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}


async def _code(call: Awaitable[object]) -> grpc.StatusCode:
    try:
        await call
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def _exchanged(
    call: "aio.StreamStreamCall[Any, Any]", message: object, *, write: bool
) -> grpc.StatusCode:
    """Read one answer, after writing if that is allowed.

    What is refused is refused before a word is said; grpc.aio calls a write to a call
    that has been refused meanwhile an internal error, and forgets the refusal.
    """
    async with asyncio.timeout(10):
        if write:
            await call.write(message)
        with suppress(aio.AioRpcError):
            if await call.read() is not aio.EOF:
                call.cancel()
                return grpc.StatusCode.OK
        return await call.code()


async def _first(call: AsyncIterable[object]) -> None:
    async for _ in call:
        return


async def test_a_certificate_of_an_unknown_role_may_call_nothing(plane: ControlPlane) -> None:
    plane.certificates.of_stranger("estiba:nobody")
    async with plane.control("stranger") as control:
        with pytest.raises(aio.AioRpcError) as refused:
            await control.GetCluster(pb.GetClusterRequest())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_without_a_certificate_there_is_no_connection(plane: ControlPlane) -> None:
    ca = plane.certificates.of("user").ca.read_bytes()
    credentials = grpc.ssl_channel_credentials(root_certificates=ca)
    options = [("grpc.ssl_target_name_override", "estibad.estiba")]
    async with aio.secure_channel(plane.members[0].address, credentials, options) as channel:
        control: Control = control_pb2_grpc.ControlStub(channel)
        with pytest.raises(aio.AioRpcError) as refused:
            await control.GetCluster(pb.GetClusterRequest())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
