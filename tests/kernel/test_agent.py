"""The agent as a program, with launcher, log pump, containers and network of its own, to be killed.

The member of the control plane is a script; everything below the agent is real.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from agent.launcher import Launcher
from controlplane.cli.dev import sample
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from estiba.wire import duration
from tests.support.certificates import Certificates, issue
from tests.support.containers import catches
from tests.support.dispatcher import Dispatcher
from tests.support.machine import Machine, machine
from tests.support.registry import Authority, RunningRegistry, run_registry
from tests.support.waiting import eventually, stretched

TASK = "web0001.1.1.1"
SHUTDOWN, REMOVE = v1.DESIRED_STATE_SHUTDOWN, v1.DESIRED_STATE_REMOVE
BLOCK = "10.10.1.0/24"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningRegistry]:
    """Have one registry with the sample image for all tests: none changes it."""
    folder = tmp_path_factory.mktemp("registry")
    authority = Authority(folder)
    async with run_registry(folder, authority) as running:
        await sample.push_sample(running.address, authority.ca)
        yield running


@pytest.fixture
async def member(tmp_path: Path, certificates: Certificates) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher()
    # A slow machine under test is no silent member.
    dispatcher.silence_ms = 10_000
    await dispatcher.start(certificates.of("estibad-1"), address=f"unix:{tmp_path}/member.sock")
    yield dispatcher
    await dispatcher.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def node(
    tmp_path: Path, certificates: Certificates, registry: RunningRegistry, member: Dispatcher
) -> AsyncIterator[Machine]:
    async with machine(tmp_path, certificates, registry) as node:
        node.configure(f"unix:{tmp_path}/member.sock")
        await node.start("agent")
        yield node


def assignment(
    registry: RunningRegistry,
    *command: str,
    task_id: str = TASK,
    slot: int = 1,
    health: v1.HealthCheck | None = None,
    memory_bytes: int = 0,
) -> dispatch.Assignment:
    container = v1.ContainerSpec(
        image=f"{registry.name}/hello",
        command=command,
        stop_grace_period=duration(0.5),
        health=health,
    )
    limits = v1.Limits(memory_bytes=memory_bytes)
    return dispatch.Assignment(
        task_id=task_id,
        service_id="web0001",
        service_name="web",
        slot=slot,
        desired=v1.DESIRED_STATE_RUNNING,
        template=v1.TaskTemplate(container=container, resources=v1.Resources(limits=limits)),
        attachments=[
            v1.NetworkAttachment(
                network_id="default", cidr="10.10.0.0/16", block=BLOCK, vni=4097, mtu=1450
            )
        ],
    )


def is_running(status: v1.TaskStatus) -> bool:
    return status.state == v1.TASK_STATE_RUNNING


def in_run(run: int) -> Callable[[v1.TaskStatus], bool]:
    return lambda status: status.run == run and is_running(status)


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


async def logs_of(member: Dispatcher, task_id: str = TASK) -> list[str]:
    purpose = dispatch.Purpose(logs=dispatch.ReadLogs(task_ids=[task_id]))
    return [line.line.decode() async for frame in member.open(purpose) for line in frame.logs.lines]


async def told(member: Dispatcher, text: str) -> list[str]:
    """Wait until a container has written a line."""
    async with asyncio.timeout(stretched(20)):
        while True:
            lines = await logs_of(member)
            if text in lines:
                return lines


async def test_a_task_runs_in_a_container_and_its_output_is_read(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    look = "hostname; cat /etc/hosts; echo done; exec sleep 1000"
    member.assign(assignment(registry, "sh", "-c", look))
    status = await member.status(TASK, is_running)

    assert status.ready
    assert status.address.startswith("10.10.1.")
    spaces = {Path(f"/proc/{each}/ns/pid").readlink() for each in (status.pid, "self")}
    assert len(spaces) == 2
    lines = await told(member, "done")
    assert lines[0] == "web.1"
    assert f"{status.address}\tweb.1" in lines


async def test_exit_codes_and_signals_are_told_and_the_next_run_follows(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    trap = "trap 'exit 23' TERM; while :; do sleep 0.1; done"
    member.assign(assignment(registry, "sh", "-c", trap))
    first = await member.status(TASK, is_running)

    os.kill(first.pid, signal.SIGKILL)
    second = await member.status(TASK, in_run(2))
    assert (second.last_run.message, second.last_run.exit_code) == ("killed by SIGKILL", 137)

    await asyncio.to_thread(
        eventually, lambda: catches(second.pid, signal.SIGTERM), within_s=10, what="its trap is set"
    )
    os.kill(second.pid, signal.SIGTERM)
    third = await member.status(TASK, in_run(3))
    assert (third.last_run.message, third.last_run.exit_code) == ("exit code 23", 23)


async def test_a_container_out_of_memory_is_said_to_be(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    member.assign(assignment(registry, "tail", "/dev/zero", memory_bytes=32 << 20))
    status = await member.status(TASK, lambda status: status.run >= 2)

    assert status.last_run.oom_killed
    assert status.last_run.message == "out of memory: limit 32MiB"


async def test_a_command_that_does_not_exist_is_named_and_tried_again(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    member.assign(assignment(registry, "nonsense"))
    status = await member.status(TASK, lambda status: status.run >= 3)

    assert "nonsense" in status.last_run.message
    assert not status.last_run.exit_known


async def test_an_agent_that_is_killed_comes_back_to_the_same_containers(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    count = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    trap = "trap 'exit 23' TERM; while :; do sleep 0.1; done"
    other = "web0001.2.1.1"
    member.assign(
        assignment(registry, "sh", "-c", count),
        assignment(registry, "sh", "-c", trap, task_id=other, slot=2),
    )
    before = await member.status(TASK, is_running)
    ending = await member.status(other, is_running)
    began = start_time(before.pid)

    await node.end("agent", signal.SIGKILL)
    await asyncio.to_thread(
        eventually, lambda: catches(ending.pid, signal.SIGTERM), within_s=10, what="its trap is set"
    )
    os.kill(ending.pid, signal.SIGTERM)
    await asyncio.to_thread(
        eventually,
        lambda: not Path(f"/proc/{ending.pid}").exists(),
        within_s=10,
        what="a container ends while the agent is dead",
    )
    member.statuses.clear()
    await node.start("agent")

    after = await member.status(TASK, is_running)
    assert (after.pid, after.run, after.address) == (before.pid, 1, before.address)
    assert start_time(after.pid) == began
    told_of = await member.status(other, in_run(2))
    assert told_of.last_run.exit_code == 23
    lines = await logs_of(member)
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]


async def test_an_agent_that_is_stopped_ends_cleanly_and_touches_no_container(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    member.assign(assignment(registry, "sleep", "1000"))
    before = await member.status(TASK, is_running)

    assert await node.end("agent", signal.SIGTERM) == 0

    assert Path(f"/proc/{before.pid}").exists()
    assert "Traceback" not in node.log("agent")


async def test_an_exit_code_lost_with_the_launcher_is_unknown(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    member.assign(assignment(registry, "sleep", "1000"))
    before = await member.status(TASK, is_running)

    await node.end("launcher", signal.SIGKILL)
    os.kill(before.pid, signal.SIGKILL)
    await node.start("launcher")

    after = await member.status(TASK, in_run(2))
    assert after.last_run.message in {
        "exit code unknown: the launcher was lost",
        # A kernel from 6.15 on tells it to whoever held the process by a pidfd.
        "killed by SIGKILL",
    }


async def test_a_stubborn_container_gets_its_grace_and_is_killed(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    ignore = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    member.assign(assignment(registry, "sh", "-c", ignore))
    await member.status(TASK, is_running)
    await told(member, "ready")

    member.desire(TASK, SHUTDOWN)
    status = await member.status(TASK, lambda status: status.state == v1.TASK_STATE_SHUTDOWN)

    assert status.message == "stopped: killed by SIGKILL"
    assert "ready" in await logs_of(member)
    assert node.containers() == set()


async def test_a_removed_task_leaves_nothing_on_the_node(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    ids = [f"web0001.{slot}.1.1" for slot in range(1, 11)]
    member.assign(
        *(
            assignment(registry, "sh", "-c", "echo hello; exec sleep 1000", task_id=each, slot=slot)
            for slot, each in enumerate(ids, start=1)
        )
    )
    for each in ids:
        await member.status(each, is_running)
    assert len(node.containers()) == 10

    for each in ids:
        member.desire(each, REMOVE)
    for each in ids:
        await member.status(each, lambda status: status.state == v1.TASK_STATE_REMOVED)

    assert node.containers() == set()
    assert node.processes() == set()
    for folder in ("containers", "logs", "tasks"):
        assert list((node.state / folder).iterdir()) == []


async def test_tasks_removed_at_any_moment_of_their_start_leave_nothing(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    ids = [f"web0001.{slot}.1.1" for slot in range(1, 41)]
    for slot, each in enumerate(ids, start=1):
        member.assign(assignment(registry, "sleep", "1000", task_id=each, slot=slot))
    for each in ids:
        await asyncio.sleep(0.005)
        member.desire(each, REMOVE)
    for each in ids:
        await member.status(each, lambda status: status.state == v1.TASK_STATE_REMOVED)

    assert node.containers() == set()
    assert node.processes() == set()
    for folder in ("containers", "logs", "tasks"):
        assert list((node.state / folder).iterdir()) == []
    assert member.statuses.keys() == set(ids)


@pytest.mark.parametrize(
    "check",
    [
        v1.HealthCheck(exec=v1.ExecCheck(command=["test", "-e", "/www/index.html"])),
        v1.HealthCheck(http=v1.HttpCheck(port=8080, path="/index.html")),
        v1.HealthCheck(tcp=v1.TcpCheck(port=8080)),
    ],
    ids=["exec", "http", "tcp"],
)
async def test_health_is_checked_in_every_way(
    node: Machine, member: Dispatcher, registry: RunningRegistry, check: v1.HealthCheck
) -> None:
    check.interval.CopyFrom(duration(0.1))
    check.retries = 2
    check.start_period.CopyFrom(duration(20))
    serve = "mkdir -p /www; echo hi > /www/index.html; httpd -p 8080 -h /www; sleep 1000"
    spoil = "rm /www/index.html; killall httpd"
    script = f"trap '{spoil}' USR1; ({serve}) & while :; do wait; done"
    member.assign(assignment(registry, "sh", "-c", script, health=check))

    status = await member.status(TASK, lambda status: status.ready)
    assert status.health == v1.HEALTH_HEALTHY

    os.kill(status.pid, signal.SIGUSR1)
    status = await member.status(TASK, lambda status: status.run == 2)
    assert status.last_run.message.startswith("unhealthy: 2 checks in a row failed")


# ---------------------------------------------------------------------------------------- leaving


OTHER = "web0001.2.1.1"


async def run_two(member: Dispatcher, registry: RunningRegistry) -> None:
    """Have a task that ends when it is asked to, and one that does not."""
    polite = "trap 'exit 23' TERM; echo ready; while :; do sleep 0.1; done"
    stubborn = "trap '' TERM; while :; do sleep 0.1; done"
    other = assignment(registry, "sh", "-c", stubborn, task_id=OTHER, slot=2)
    member.assign(assignment(registry, "sh", "-c", polite), other)
    for task_id in (TASK, OTHER):
        await member.status(task_id, is_running)
    await told(member, "ready")


async def done(*argv: str | Path) -> None:
    assert await (await asyncio.create_subprocess_exec(*argv)).wait() == 0


def assert_nothing_is_left_of(node: Machine) -> None:
    assert node.containers() == set()
    assert node.processes() == set()
    assert node.links() == set()
    assert node.tables() == ""
    assert not node.state.exists()


async def test_a_node_that_is_cleared_stops_its_containers_in_good_order_and_leaves_nothing(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    await run_two(member, registry)
    assert node.links() > {"br4097"}
    await node.end("agent")
    ends: dict[str, int | None] = {}
    witness = Launcher(node.folder / "launcher.sock")
    witness.on_exit(lambda ended: ends.update({ended.container_id: ended.exit_code}))
    watching = asyncio.create_task(witness.run())
    await witness.list()

    assert await node.clear() == (0, "")

    assert ends == {f"{TASK}-r1": 23, f"{OTHER}-r1": 137}
    assert await witness.list() == []
    watching.cancel()
    assert_nothing_is_left_of(node)
    assert await node.clear() == (0, "")
    assert_nothing_is_left_of(node)


async def test_a_node_is_cleared_without_its_launcher_too(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    await run_two(member, registry)
    for program in ("agent", "launcher", "log-pump"):
        await node.end(program, signal.SIGKILL)

    code, said = await node.clear()

    assert code == 0, said
    assert_nothing_is_left_of(node)
    assert node.cgroups() == []


async def test_a_node_whose_agent_works_is_not_cleared(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    member.assign(assignment(registry, "sleep", "1000"))
    status = await member.status(TASK, is_running)

    said = f"estiba-agent: another agent works in {node.state}: stop it first"
    assert await node.clear() == (1, said)

    assert Path(f"/proc/{status.pid}").exists()


async def test_what_somebody_else_keeps_or_has_mounted_in_the_state_folder_stays(
    node: Machine, member: Dispatcher, registry: RunningRegistry
) -> None:
    await node.end("agent")
    strange = node.state / "images" / "strange"
    strange.mkdir()
    await done("mount", "-t", "tmpfs", "tmpfs", strange)
    try:
        code, said = await node.clear()
    finally:
        await done("umount", strange)
    assert code == 1
    assert said.endswith(f"something is mounted at {strange}: unmount it, then try again")
    (node.state / "somebody's").write_text("theirs")

    assert await node.clear() == (0, "")

    assert [path.name for path in node.state.iterdir()] == ["somebody's"]


@pytest.mark.parametrize("after_s", [0.3, 0.5, 0.7, 0.9, 1.1])
async def test_clearing_that_is_killed_at_any_moment_is_finished_by_the_next(
    node: Machine, member: Dispatcher, registry: RunningRegistry, after_s: float
) -> None:
    await run_two(member, registry)
    await node.end("agent")

    await node.clear(kill_after_s=after_s)

    code, said = await node.clear()
    assert code == 0, said
    assert_nothing_is_left_of(node)
