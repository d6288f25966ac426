"""The agent against a member of the control plane: sessions, reports, streams.

Real gRPC and TLS; launcher, images and network are faulty on demand.
"""

import asyncio
import logging

import grpc
import pytest

from agent.errors import ImageError, LauncherLostError, LaunchError, NetworkError
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from estiba.wire import duration, report_order
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
from tests.support.faults import FakeResult

# ---------------------------------------------------------------------------------------- tasks


async def test_an_assigned_task_runs_and_is_reported(node: Node, member: Dispatcher) -> None:
    async with node.agent(member):
        await member.until(lambda: bool(member.hellos))
        member.assign(assignment())
        status = await member.status(TASK, IS_RUNNING)

    assert status.ready
    assert (status.run, status.pid, status.address) == (1, 1000, "10.10.1.2")
    assert status.image_digest == node.images.image.digest
    description = member.hellos[0].description
    assert (description.hostname, description.nano_cpus) == ("n1", 4_000_000_000)
    assert description.metrics_address == "127.0.0.1:7490"
    bundle = node.folder / "containers" / f"{TASK}-r1"
    assert (bundle / "hosts").read_text().endswith("10.10.1.2\tweb.1\n")
    assert (bundle / "resolv.conf").read_text() == "nameserver 10.0.2.3\n"


async def test_words_of_an_image_that_are_no_text_do_not_end_the_agent(
    node: Node, member: Dispatcher
) -> None:
    # JSON can spell halves of characters, which no message can carry; and escapes of terminals.
    half = "\ud800\x1b[2J"
    node.images.faults = [ImageError(f"image hello: no platform {half} in the manifest list")]
    fault = LaunchError("command", f"command not found: {half}{9999 * 'x'}")
    node.launcher.faults["create"] = [fault]
    async with node.agent(member):
        await member.until(lambda: bool(member.hellos))
        member.assign(assignment())
        status = await member.status(TASK, lambda status: status.run == 3 and status.ready)

    said = [note.message for note in status.notes]
    assert "image hello: no platform ??[2J in the manifest list" in said
    assert any(each.startswith("command not found: ??[2Jxxx") for each in said)
    assert all(len(each) < 2000 for each in said)


async def test_an_ended_container_runs_again_in_the_same_task(
    node: Node, member: Dispatcher
) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        node.launcher.end(f"{TASK}-r1", exit_code=3)
        status = await member.status(TASK, lambda told: told.run == 2 and IS_RUNNING(told))

    assert status.last_run.exit_code == 3
    assert status.last_run.message == "exit code 3"
    assert [note.message for note in status.notes] == ["exit code 3"]
    assert set(node.launcher.containers) == {f"{TASK}-r2"}
    assert set(node.network.connected) == {f"{TASK}-r2"}
    # What the tag meant to the first run is what the second one runs.
    assert node.images.asked == ["hello", f"docker.io/library/hello@{node.images.image.digest}"]
    reports = [each.status for each in member.history]
    assert [report_order(each) for each in reports] == sorted(map(report_order, reports))


@pytest.mark.parametrize(
    ("where", "fault", "said"),
    [
        ("image", ImageError("image hello: not found"), "image hello: not found"),
        ("create", LaunchError("limits", "no such limit"), "no such limit"),
        ("start", LaunchError("command", "command not found: foo"), "command not found: foo"),
        ("create", LauncherLostError("the launcher is away"), "the launcher is away"),
        ("connect", NetworkError("no address is free"), "no address is free"),
    ],
)
async def test_what_keeps_a_run_from_starting_is_said_and_tried_again(
    node: Node, member: Dispatcher, where: str, fault: Exception, said: str
) -> None:
    if where == "image":
        node.images.faults.append(fault)
    elif where == "connect":
        node.network.faults.append(fault)
    else:
        node.launcher.faults[where] = [fault]
    member.assign(assignment())

    async with node.agent(member):
        status = await member.status(TASK, IS_RUNNING)

    assert status.run == 2
    assert status.last_run.message == said
    assert not status.last_run.exit_known
    assert set(node.launcher.containers) == {f"{TASK}-r2"}


async def test_a_task_that_can_never_run_here_is_rejected(node: Node, member: Dispatcher) -> None:
    limits = v1.Resources(limits=v1.Limits(memory_bytes=1000))
    member.assign(assignment(resources=limits))

    async with node.agent(member):
        status = await member.status(TASK, in_state(v1.TASK_STATE_REJECTED))
        assert "memory limit 1000 bytes is below" in status.message
        member.desire(TASK, REMOVE)
        await member.status(TASK, in_state(v1.TASK_STATE_REMOVED))

    assert not node.launcher.containers


async def test_stopping_gives_the_grace_and_then_kills(node: Node, member: Dispatcher) -> None:
    node.launcher.stubborn = True
    member.assign(assignment())

    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        member.desire(TASK, SHUTDOWN)
        status = await member.status(TASK, in_state(v1.TASK_STATE_SHUTDOWN))

    assert node.launcher.signals == [(f"{TASK}-r1", 15), (f"{TASK}-r1", 9)]
    assert status.message == "stopped: killed by SIGKILL"
    assert not node.launcher.containers
    assert not node.network.connected


async def test_a_removed_task_leaves_nothing(node: Node, member: Dispatcher) -> None:
    member.assign(assignment())

    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        member.desire(TASK, REMOVE)
        await member.status(TASK, in_state(v1.TASK_STATE_REMOVED))
        member.forget(TASK)
        await member.until(lambda: member.applied_revision == member.revision)

    for folder in ("containers", "logs", "tasks"):
        assert list((node.folder / folder).iterdir()) == []


async def test_a_task_is_stopped_while_its_image_is_still_pulled(
    node: Node, member: Dispatcher
) -> None:
    node.images.here.clear()
    member.assign(assignment())

    async with node.agent(member):
        status = await member.status(TASK, in_state(v1.TASK_STATE_PREPARING))
        assert status.message == "pulling hello: 1 of 2 layers"
        member.desire(TASK, SHUTDOWN)
        await member.status(TASK, in_state(v1.TASK_STATE_SHUTDOWN))

    assert "create" not in node.launcher.calls


async def test_at_most_eight_containers_are_made_at_a_time(node: Node, member: Dispatcher) -> None:
    node.launcher.creating.clear()
    ids = [f"web0001.{slot}.1.1" for slot in range(1, 31)]
    member.assign(*(assignment(task_id, slot=slot) for slot, task_id in enumerate(ids, start=1)))

    async with node.agent(member):
        for task_id in ids:
            await member.status(task_id, in_state(v1.TASK_STATE_PREPARING))
        assert node.launcher.calls.count("create") == 8
        node.launcher.creating.set()
        for task_id in ids:
            await member.status(task_id, IS_RUNNING)


# --------------------------------------------------------------------------------------- health


EXEC_CHECK = v1.HealthCheck(exec=v1.ExecCheck(command=["true"]), interval=duration(0.05), retries=2)


async def test_a_checked_task_is_ready_when_healthy(node: Node, member: Dispatcher) -> None:
    node.launcher.exec_results = [FakeResult(1, b"not yet")] * 2 + [FakeResult(0)]
    check = v1.HealthCheck()
    check.CopyFrom(EXEC_CHECK)
    check.start_period.CopyFrom(duration(60))
    member.assign(assignment(health=check))

    async with node.agent(member):
        status = await member.status(TASK, lambda told: told.message.startswith("not healthy"))
        assert status.message == "not healthy yet: exit code 1: not yet"
        assert not status.ready
        status = await member.status(TASK, lambda told: told.ready)

    assert status.health == v1.HEALTH_HEALTHY


async def test_an_unhealthy_run_is_stopped_and_the_next_one_follows(
    node: Node, member: Dispatcher
) -> None:
    node.launcher.exec_results = [FakeResult(1, b"broken")]
    member.assign(assignment(health=EXEC_CHECK))

    async with node.agent(member):
        status = await member.status(TASK, lambda told: told.run == 2)

    assert status.last_run.message == (
        "unhealthy: 2 checks in a row failed, the last: exit code 1: broken"
    )
    assert node.launcher.signals[0] == (f"{TASK}-r1", 15)


# --------------------------------------------------------------------------------- coming back


async def test_an_agent_that_comes_back_touches_no_container(
    node: Node, member: Dispatcher
) -> None:
    member.assign(assignment())
    async with node.agent(member):
        before = await member.status(TASK, IS_RUNNING)
    node.launcher.calls.clear()

    async with node.agent(member):
        await member.until(lambda: len(member.hellos) == 2)
        await member.until(lambda: member.history[-1].status == before)

    assert set(node.launcher.calls) == {"list"}
    assert member.hellos[1].revision == member.revision


async def test_exits_while_the_agent_was_away_are_told_right(
    node: Node, member: Dispatcher
) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
    node.launcher.end(f"{TASK}-r1", exit_code=23)

    async with node.agent(member):
        status = await member.status(TASK, lambda told: told.run == 2 and IS_RUNNING(told))

    assert status.last_run.exit_code == 23


async def test_a_container_that_the_launcher_lost_has_an_unknown_exit_code(
    node: Node, member: Dispatcher
) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
    del node.launcher.containers[f"{TASK}-r1"]

    async with node.agent(member):
        status = await member.status(TASK, lambda told: told.run == 2 and IS_RUNNING(told))

    assert status.last_run.message == "exit code unknown: the launcher was lost"
    assert not status.last_run.exit_known


async def test_containers_of_no_assigned_task_are_removed(node: Node, member: Dispatcher) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
    other = "old0001.1.1.1-r4"
    (node.folder / "containers" / other).mkdir()
    (node.folder / "containers" / other / "config.json").touch()
    await node.launcher.create(other, node.folder / "containers" / other)

    async with node.agent(member):
        await member.until(lambda: other not in node.launcher.containers)

    assert set(node.launcher.containers) == {f"{TASK}-r1"}


async def test_an_agent_without_its_assignments_removes_nothing_before_it_is_told(
    node: Node, member: Dispatcher
) -> None:
    member.assign(assignment(), assignment("web0001.2.1.1", slot=2))
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        await member.status("web0001.2.1.1", IS_RUNNING)
    (node.folder / "assignments").unlink()
    before = node.launcher.containers[f"{TASK}-r1"]
    del member.assigned["web0001.2.1.1"]
    member.refusal = (grpc.StatusCode.UNAVAILABLE, "not now")

    async with node.agent(member):
        await asyncio.sleep(0.3)
        assert len(node.launcher.containers) == 2
        member.refusal = None
        await member.until(lambda: len(node.launcher.containers) == 1)

    assert node.launcher.containers == {f"{TASK}-r1": before}


async def test_an_agent_without_its_journal_goes_on_above_the_last_known_run(
    node: Node, member: Dispatcher
) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
    (node.folder / "tasks" / f"{TASK}.journal").unlink()
    member.assigned[TASK].last_run = 6

    (node.folder / "assignments").unlink()
    async with node.agent(member):
        status = await member.status(TASK, lambda told: told.run == 7 and IS_RUNNING(told))

    assert "its journal was lost" in status.notes[0].message
    assert set(node.launcher.containers) == {f"{TASK}-r7"}


async def test_without_the_control_plane_containers_are_restarted(
    node: Node, member: Dispatcher
) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
    member.refusal = (grpc.StatusCode.UNAVAILABLE, "not now")
    node.launcher.calls.clear()

    async with node.agent(member):
        await told_later(lambda: "list" in node.launcher.calls)
        node.launcher.end(f"{TASK}-r1", exit_code=1)
        member.refusal = None
        status = await member.status(TASK, lambda told: told.run == 2 and IS_RUNNING(told))

    assert status.last_run.exit_code == 1


# ------------------------------------------------------------------------------------ sessions


async def test_an_agent_goes_to_another_member_when_one_dies(
    node: Node, certificates: Certificates
) -> None:
    one, other = Dispatcher(member_id="estibad-1"), Dispatcher(member_id="estibad-2")
    await one.start(certificates.of("estibad-1"))
    await other.start(certificates.of("estibad-2"))
    async with node.agent(one, other):
        first, second = await whose_session(one, other)
        await first.stop()
        await second.until(lambda: bool(second.hellos), within_s=3)
    await second.stop()


async def test_an_agent_leaves_a_member_that_falls_silent_and_says_so(
    node: Node, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, other = Dispatcher(member_id="estibad-1"), Dispatcher(member_id="estibad-2")
    await one.start(certificates.of("estibad-1"))
    await other.start(certificates.of("estibad-2"))
    async with node.agent(one, other):
        first, second = await whose_session(one, other)
        first.silent = True
        await second.until(lambda: bool(second.hellos), within_s=4)
    assert f"no session with {first.address}: silent for 1 s" in caplog.text
    await one.stop()
    await other.stop()


async def whose_session(one: Dispatcher, other: Dispatcher) -> tuple[Dispatcher, Dispatcher]:
    await told_later(lambda: bool(one.hellos or other.hellos))
    return (one, other) if one.hellos else (other, one)


async def test_after_a_reconnect_everything_is_reported_again(
    node: Node, member: Dispatcher, certificates: Certificates
) -> None:
    member.assign(assignment())
    async with node.agent(member):
        before = await member.status(TASK, IS_RUNNING)
        address = member.address
        await member.stop()
        member.statuses.clear()
        await member.start(certificates.of("estibad-1"), address=address)
        assert await member.status(TASK, IS_RUNNING) == before


async def test_a_member_of_an_older_epoch_is_not_obeyed(node: Node, member: Dispatcher) -> None:
    member.epoch = 5
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        member.epoch, member.assigned = 4, {}
        hellos = len(member.hellos)
        member.send(dispatch.Assignments(epoch=4, revision=10_000, complete=True))
        await member.until(lambda: len(member.hellos) >= hellos + 2)

    assert set(node.launcher.containers) == {f"{TASK}-r1"}
    assert member.hellos[-1].epoch == 5


async def test_a_removed_node_stops_everything_and_leaves_nothing(
    node: Node, member: Dispatcher, certificates: Certificates
) -> None:
    member.assign(assignment(), assignment("web0001.2.1.1", slot=2))
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        await member.status("web0001.2.1.1", IS_RUNNING)
        member.refusal = (grpc.StatusCode.PERMISSION_DENIED, "node n1 was removed")
        address = member.address
        await member.stop()
        await member.start(certificates.of("estibad-1"), address=address)
        await told_later(lambda: not any((node.folder / "tasks").iterdir()))

    assert not node.launcher.containers
    assert {signal for _, signal in node.launcher.signals} == {15}
    assert not any((node.folder / "containers").iterdir())


async def test_an_unacknowledged_report_is_sent_again_in_the_next_session(
    node: Node, member: Dispatcher, certificates: Certificates
) -> None:
    member.storing = False
    member.assign(assignment())
    async with node.agent(member):
        await member.until(lambda: member.applied_revision == member.revision)
        await told_later(lambda: bool(node.launcher.containers))
        member.storing = True
        address = member.address
        await member.stop()
        await member.start(certificates.of("estibad-1"), address=address)
        await member.status(TASK, IS_RUNNING)
