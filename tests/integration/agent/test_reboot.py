"""An agent on a machine that stopped: no container lives, and the last of its records are lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from estiba.v1 import types_pb2 as v1
from estiba.wire import report_order
from tests.support.agent_node import (
    IS_RUNNING,
    REMOVE,
    SHUTDOWN,
    TASK,
    Node,
    assignment,
    in_state,
    told_later,
)
from tests.support.certificates import Certificates
from tests.support.dispatcher import Dispatcher
from tests.support.faults import FakeLauncher


async def has_run(node: Node, member: Dispatcher, runs: int) -> v1.TaskStatus:
    """Have a task in its so-manieth run, and keep the records of the first aside."""
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        shutil.copytree(node.folder / "tasks", node.folder.parent / "old")
        for run in range(1, runs):
            node.launcher.end(f"{TASK}-r{run}", exit_code=1)
            await member.status(TASK, in_run(run + 1))
        return member.statuses[TASK]


def in_run(run: int) -> Callable[[v1.TaskStatus], bool]:
    return lambda status: status.run == run and IS_RUNNING(status)


def stop_at_once(node: Node) -> None:
    """Have the machine as it is after its power was gone for a moment."""
    node.launcher = FakeLauncher()
    shutil.rmtree(node.folder / "tasks")
    shutil.copytree(node.folder.parent / "old", node.folder / "tasks")


@pytest.fixture
def node(tmp_path: Path, node: Node) -> Node:
    node.folder = tmp_path / "state"
    return node


async def test_a_task_whose_last_records_are_lost_goes_on_above_what_was_told_of_it(
    node: Node, member: Dispatcher
) -> None:
    told = await has_run(node, member, 4)
    stop_at_once(node)
    member.assigned[TASK].last_run, member.assigned[TASK].last_seq = told.run, told.seq
    member.history.clear()
    async with node.agent(member):
        status = await member.status(TASK, in_run(5))
        await told_later(lambda: set(node.launcher.containers) == {f"{TASK}-r5"})

    assert report_order(status) > report_order(told)
    assert status.notes[-1].message == "its journal was lost: goes on above run 4"
    assert [path.name for path in (node.folder / "containers").iterdir()] == [f"{TASK}-r5"]


async def test_it_is_lifted_too_if_only_the_member_knows_of_later_runs(
    node: Node, member: Dispatcher, certificates: Certificates
) -> None:
    told = await has_run(node, member, 4)
    stop_at_once(node)
    # Without the bundles nothing here tells of later runs, so it goes on as it knows at first.
    shutil.rmtree(node.folder / "containers")
    await member.stop()
    member.assigned[TASK].last_run, member.assigned[TASK].last_seq = told.run, told.seq
    async with node.agent(member):
        await told_later(lambda: set(node.launcher.containers) == {f"{TASK}-r2"})
        await member.start(certificates.of("estibad-1"), address=member.address)
        status = await member.status(TASK, in_run(5))
        await told_later(lambda: set(node.launcher.containers) == {f"{TASK}-r5"})
    assert report_order(status) > report_order(told)


@pytest.mark.parametrize("desired", [SHUTDOWN, REMOVE])
async def test_a_task_that_was_to_end_meanwhile_ends_in_a_way_that_counts(
    node: Node, member: Dispatcher, desired: "v1.DesiredState.ValueType"
) -> None:
    told = await has_run(node, member, 4)
    stop_at_once(node)
    member.assigned[TASK].last_run, member.assigned[TASK].last_seq = told.run, told.seq
    member.assigned[TASK].desired = desired
    ends = in_state(v1.TASK_STATE_SHUTDOWN, v1.TASK_STATE_REMOVED)
    async with node.agent(member):
        status = await member.status(TASK, ends)
    assert report_order(status) > report_order(told)
    assert not node.launcher.containers


async def test_assignments_that_are_lost_remove_nothing_until_a_member_has_spoken(
    node: Node, member: Dispatcher, certificates: Certificates
) -> None:
    await has_run(node, member, 1)
    await member.stop()
    (node.folder / "assignments").write_bytes(b"")
    logs = node.folder / "logs" / TASK
    (logs / "1.log").write_text("what it said")
    node.launcher.calls.clear()
    async with node.agent(member):
        await told_later(lambda: "list" in node.launcher.calls)
        assert set(node.launcher.containers) == {f"{TASK}-r1"}
        await member.start(certificates.of("estibad-1"), address=member.address)
        status = await member.status(TASK, IS_RUNNING)
    assert status.run == 1
    assert (logs / "1.log").exists()
