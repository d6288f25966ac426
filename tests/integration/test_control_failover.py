"""A member that dies, or stands still: the other goes on, and no task moves."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import aio

from estiba.kit.clock import SystemClock
from estiba.v1 import control_pb2 as pb
from estiba.v1 import types_pb2 as v1
from tests.support.agents import SimulatedAgent
from tests.support.declaring import spec
from tests.support.estibad import ControlPlane, RemoteSessions, control_plane, eventually


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with control_plane(tmp_path) as running:
        yield running


@asynccontextmanager
async def agents(plane: ControlPlane) -> AsyncIterator[list[SimulatedAgent]]:
    """Run two agents that know both members."""
    async with AsyncExitStack() as stack:
        simulated = [
            await _agent(plane, stack, holder, node_id)
            for holder, node_id in (("n1", "node-1"), ("n2", "node-2"))
        ]
        running = [asyncio.create_task(each.run()) for each in simulated]
        try:
            yield simulated
        finally:
            # Raises what has ended one before its time.
            ended = [task for task in running if task.done()]
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            for task in ended:
                task.result()


async def _agent(
    plane: ControlPlane, stack: AsyncExitStack, holder: str, node_id: str
) -> SimulatedAgent:
    members = [
        RemoteSessions(await stack.enter_async_context(plane.channel(holder, member=number)))
        for number in range(2)
    ]
    rng = random.Random(node_id)
    return SimulatedAgent(node_id, lambda: members, clock=SystemClock(), rng=rng)


async def leader(plane: ControlPlane, *, ask: int = 0) -> int:
    async with plane.control(member=ask) as control:
        members = (await control.GetCluster(pb.GetClusterRequest())).members
    return next(int(each.id[-1]) - 1 for each in members if each.leader)


async def placements(plane: ControlPlane, member: int) -> dict[str, str]:
    async with plane.control(member=member) as control:
        tasks = (await control.ListTasks(pb.ListTasksRequest())).tasks
    return {task.metadata.id: task.node_id for task in tasks}


async def converge(plane: ControlPlane, member: int, *, within_s: float) -> float:
    async with plane.control(member=member) as control:

        async def look() -> bool:
            read = await control.GetService(pb.GetServiceRequest(service="web"))
            return read.status.converged

        return await eventually(look, within_s=within_s, what="the service has converged")


async def declare(plane: ControlPlane, replicas: int) -> None:
    async with plane.control() as control:
        service = v1.Service(metadata=v1.Metadata(name="web"), spec=spec(replicas=replicas))
        await control.CreateService(pb.CreateServiceRequest(service=service))
    await converge(plane, 0, within_s=15)


async def scale(plane: ControlPlane, member: int, replicas: int) -> None:
    async with plane.control(member=member) as control:
        await control.ScaleService(pb.ScaleServiceRequest(service="web", replicas=replicas))


async def test_with_the_leader_killed_changes_go_on_within_ten_seconds_and_no_task_moves(
    plane: ControlPlane,
) -> None:
    async with agents(plane):
        await declare(plane, 4)
        before = await placements(plane, 0)
        killed = await leader(plane)
        left = 1 - killed
        plane.members[killed].end(signal.SIGKILL)
        await scale(plane, left, 6)
        await converge(plane, left, within_s=10)
        after = await placements(plane, left)
        assert before.items() <= after.items()
        assert len(after) == 6
        plane.members[killed].start()
        await scale(plane, killed, 5)
        await converge(plane, killed, within_s=10)


async def test_a_leader_that_stood_still_finds_itself_deposed_and_no_task_has_moved(
    plane: ControlPlane,
) -> None:
    async with agents(plane) as simulated:
        await declare(plane, 4)
        before = await placements(plane, 0)
        stopped = await leader(plane)
        other = 1 - stopped
        plane.members[stopped].send(signal.SIGSTOP)
        # Declared while it stands still: the other one leads before this can be carried out.
        await scale(plane, other, 6)
        await converge(plane, other, within_s=15)
        assert await leader(plane, ask=other) == other
        await asyncio.sleep(3)
        plane.members[stopped].send(signal.SIGCONT)
        await asyncio.sleep(2)
        assert await leader(plane, ask=stopped) == other
        assert "does not lead any more" in plane.members[stopped].log
        assert "Traceback" not in plane.members[stopped].log
        assert before.items() <= (await placements(plane, stopped)).items()
        assert sum(len(each.running()) for each in simulated) == 6


async def test_etcd_may_be_away_for_a_while(plane: ControlPlane) -> None:
    async with agents(plane) as simulated:
        await declare(plane, 4)
        before = await placements(plane, 0)
        await plane.etcd.kill()
        await asyncio.sleep(8)
        assert sum(len(each.running()) for each in simulated) == 4, "nodes go on alone"
        await plane.etcd.start()

        async def answers() -> bool:
            try:
                await scale(plane, 0, 5)
            except aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
            return True

        await eventually(answers, within_s=15, what="changes are taken again")
        await converge(plane, 0, within_s=15)
        assert before.items() <= (await placements(plane, 0)).items()
        for member in plane.members:
            assert "Traceback" not in member.log


async def test_sigterm_is_a_clean_end(plane: ControlPlane) -> None:
    async with plane.control() as control:
        await control.GetCluster(pb.GetClusterRequest())
    member = plane.members[0]
    assert member.end(signal.SIGTERM) == 0
    assert "Traceback" not in member.log
