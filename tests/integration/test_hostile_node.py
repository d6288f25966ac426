"""A node in the hands of a stranger, against real members: what its certificate cannot do."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio

from controlplane.errors import UnavailableError
from estiba import wire
from estiba.kit.clock import SystemClock
from estiba.v1 import control_pb2 as pb
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from tests.support.agents import SimulatedAgent
from tests.support.declaring import spec
from tests.support.estibad import ControlPlane, RemoteSessions, control_plane, eventually

if TYPE_CHECKING:
    from estiba.v1.control_pb2_grpc import ControlAsyncStub as Control


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane"), members=1) as running:
        yield running


@pytest.fixture
async def control(plane: ControlPlane) -> AsyncIterator["Control"]:
    async with plane.control() as stub:
        yield stub


@asynccontextmanager
async def hostile(plane: ControlPlane) -> AsyncIterator[tuple[SimulatedAgent, RemoteSessions]]:
    """Run node-1, which does what the test makes it do."""
    async with plane.channel("n1") as channel:
        sessions = RemoteSessions(channel)
        agent = SimulatedAgent(
            "node-1", lambda: [sessions], clock=SystemClock(), rng=random.Random(1)
        )
        running = asyncio.create_task(agent.run())
        try:
            yield agent, sessions
        finally:
            running.cancel()
            await asyncio.wait([running])


@asynccontextmanager
async def one_task(control: "Control", name: str) -> AsyncIterator[str]:
    """Have a service of one replica; yield its task's id once it runs."""
    service = v1.Service(metadata=v1.Metadata(name=name), spec=spec(replicas=1))
    await control.CreateService(pb.CreateServiceRequest(service=service))

    async def converged() -> bool:
        return (await control.GetService(pb.GetServiceRequest(service=name))).status.converged

    await eventually(converged, within_s=10, what="it runs")
    (task,) = (await control.ListTasks(pb.ListTasksRequest(service=name))).tasks
    yield task.metadata.id
    await control.DeleteService(pb.DeleteServiceRequest(service=name))


async def test_a_report_larger_than_the_store_takes_is_cut_and_ends_no_member(
    plane: ControlPlane, control: "Control"
) -> None:
    async with hostile(plane) as (agent, _), one_task(control, "flood") as task_id:
        flood = "\x1b[2J" + "x" * (3 << 20)
        agent.claim(task_id, v1.TASK_STATE_RUNNING, run=2, message=flood)

        async def stored() -> bool:
            task = await control.GetTask(pb.GetTaskRequest(task=task_id))
            return task.status.message.startswith("?[2Jxxx") and len(task.status.message) < 1000

        await eventually(stored, within_s=10, what="the report is stored")


@pytest.mark.parametrize(
    "description",
    [
        v1.NodeDescription(nano_cpus=-1),
        v1.NodeDescription(memory_bytes=(1 << 63) - 1),
        v1.NodeDescription(hostname="n1\x1b[2J"),
        v1.NodeDescription(metrics_address="10.0.0.1:80/elsewhere?"),
        v1.NodeDescription(kernel="x", os="y", hostname="z" * (2 << 20)),
    ],
)
async def test_a_node_that_says_of_itself_what_cannot_be_is_not_taken(
    plane: ControlPlane, description: v1.NodeDescription
) -> None:
    async def hello() -> AsyncIterator[dispatch.AgentMessage]:
        yield dispatch.AgentMessage(hello=dispatch.Hello(description=description))
        await asyncio.Event().wait()

    async def send(message: dispatch.MemberMessage) -> None:
        raise AssertionError(f"it was answered: {message}")

    async with plane.channel("n1") as channel:
        with pytest.raises(UnavailableError, match="description"):
            await RemoteSessions(channel).serve("node-1", hello(), send)


async def test_a_node_cannot_carry_what_another_was_asked_for(plane: ControlPlane) -> None:
    async def frames() -> AsyncIterator[dispatch.Frame]:
        yield dispatch.Frame(stream_id="f" * 32)

    async with plane.channel("n2") as channel:
        with pytest.raises(aio.AioRpcError) as refused:
            async for _ in RemoteSessions(channel).stub.Carry(frames()):
                pass
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_node_cannot_put_lines_into_the_logs_of_tasks_it_was_not_asked_for(
    plane: ControlPlane, control: "Control"
) -> None:
    carrying: list[asyncio.Task[None]] = []

    async def carry(sessions: RemoteSessions, asked: dispatch.Open) -> None:
        async def frames() -> AsyncIterator[dispatch.Frame]:
            yield dispatch.Frame(stream_id=asked.stream_id)
            mine = asked.purpose.logs.task_ids[0]
            for task_id in ("another.1.1.1", mine):
                line = pb.LogLine(task_id=task_id, task_name="forged.1", line=b"words")
                line.at.CopyFrom(wire.timestamp(1.0))
                yield dispatch.Frame(logs=pb.LogsResponse(lines=[line]))
            timeless = pb.LogLine(task_id=mine, line=b"timeless")
            timeless.at.seconds = 1 << 60
            yield dispatch.Frame(logs=pb.LogsResponse(lines=[timeless]))
            yield dispatch.Frame(end=dispatch.End())

        async for _ in sessions.stub.Carry(frames()):
            pass

    async with hostile(plane) as (agent, sessions), one_task(control, "logged") as task_id:
        agent.on_open = lambda asked: carrying.append(asyncio.create_task(carry(sessions, asked)))
        responses = control.Logs(pb.LogsRequest(task=task_id))
        lines = [line async for response in responses for line in response.lines]
        assert [(line.task_id, line.task_name, line.line) for line in lines] == [
            (task_id, "logged.1", b"words")
        ]
        await asyncio.gather(*carrying)
