"""Ends, removal, and a launcher that is killed and comes back."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from agent.errors import LauncherLostError
from agent.kernel.pidfd import start_time
from agent.launcher import ContainerInfo
from agent.runtime.limits import Limits
from tests.support import cgroups
from tests.support.containers import BIN, Node, alive, catches, cgroup_folders, read
from tests.support.notify import listening

FOREVER = ("sleep", "1000")


async def info(node: Node, container_id: str) -> ContainerInfo:
    (found,) = [each for each in await node.launcher.list() if each.container_id == container_id]
    return found


async def test_states_are_created_running_exited(node: Node) -> None:
    bundle = node.bundle("c", "sh", "-c", "exit 3")
    pid = await node.launcher.create("c", bundle)
    created = await info(node, "c")
    assert (created.state, created.pid, created.exit) == ("created", pid, None)
    await node.launcher.start("c")
    ended = await node.end("c")
    exited = await info(node, "c")
    assert (exited.state, exited.exit) == ("exited", ended)
    assert (ended.exit_code, ended.signal, ended.oom_killed) == (3, None, False)
    assert 0 < ended.started_at <= ended.ended_at


async def test_a_container_that_waits_has_its_namespaces_but_runs_nothing(node: Node) -> None:
    pid = await node.launcher.create("c", node.bundle("c", *FOREVER))
    assert read(pid, "comm").strip() == "estiba-init"
    assert node.cgroups.pids("c") == [pid]
    await node.launcher.start("c")
    assert read(pid, "cmdline") == "sleep\x001000\x00"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_a_signal_reaches_the_first_process(node: Node, number: int) -> None:
    script = f"trap 'exit 42' {int(number)}; echo ready; while :; do sleep 0.1; done"
    await node.run("c", "sh", "-c", script)
    await node.until(lambda: node.lines("c") == ["ready\n"], "its trap is set")
    await node.launcher.signal("c", number)
    assert (await node.end("c")).exit_code == 42


async def test_kill_ends_all_processes_of_a_frozen_container(node: Node) -> None:
    await node.run("c", "sh", "-c", "setsid sleep 1000 & sleep 1000 & wait")
    await node.until(lambda: len(node.cgroups.pids("c")) == 3, "its processes run")
    pids = node.cgroups.pids("c")
    cgroups.freeze(f"{node.cgroup_parent}/c")
    await node.launcher.kill("c")
    assert (await node.end("c")).signal == signal.SIGKILL
    await node.until(lambda: not any(alive(pid) for pid in pids), "all are gone")


@pytest.mark.parametrize("when", ["created", "running", "exited", "unknown"])
async def test_remove_leaves_nothing_whatever_the_state(node: Node, when: str) -> None:
    bundle = node.bundle("c", *(("true",) if when == "exited" else FOREVER))
    pid = 0
    if when != "unknown":
        pid = await node.launcher.create("c", bundle)
    if when in {"running", "exited"}:
        await node.launcher.start("c")
    if when == "exited":
        await node.end("c")
    mounts = read("self", "mountinfo")

    await asyncio.gather(*(node.launcher.remove("c") for _ in range(3)))

    assert await node.launcher.list() == []
    assert not pid or not alive(pid)
    assert cgroup_folders(node.cgroup_parent) == []
    assert [path.name for path in bundle.iterdir()] == ["config.json"]
    assert [path.name for path in (node.folder / "state").iterdir()] == ["lock"]
    assert read("self", "mountinfo") == mounts
    await node.launcher.remove("c")


async def test_a_hundred_containers_at_once_leave_nothing_behind(node: Node) -> None:
    descriptors = Path(f"/proc/{node.pid('launcher')}/fd")
    before = len(list(descriptors.iterdir()))
    names = [f"c{number}" for number in range(100)]
    pids = await asyncio.gather(*(node.run(name, *FOREVER) for name in names))
    assert len(set(pids)) == 100
    assert {each.state for each in await node.launcher.list()} == {"running"}
    await asyncio.gather(*(node.launcher.remove(name) for name in names))
    assert not any(alive(pid) for pid in pids)
    assert cgroup_folders(node.cgroup_parent) == []
    assert len(list(descriptors.iterdir())) == before


async def test_a_vanished_agent_changes_nothing(node: Node) -> None:
    gone = await asyncio.create_subprocess_exec(
        *(BIN / "python", "-c", VANISHING, node.folder / "launcher.sock"),
        node.bundle("c", *FOREVER),
    )
    assert await gone.wait() == 9
    assert (await info(node, "c")).state == "running"


VANISHING = """
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.connect(sys.argv[1])
for message in (
    {"id": 1, "op": "create", "container_id": "c", "bundle": sys.argv[2]},
    {"id": 2, "op": "start", "container_id": "c"},
):
    link.send(json.dumps(message).encode())
    link.recv(1000)
os._exit(9)
"""


async def test_noise_on_the_socket_is_refused_and_harms_nobody(node: Node) -> None:
    pid = await node.run("c", *FOREVER)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        f"s.settimeout(5); s.connect({str(node.folder / 'launcher.sock')!r});"
        "s.send(sys.argv[1].encode()); print(s.recv(1000).decode())"
    )
    for noise, answer in (
        ("nonsense", ""),
        ("[]", ""),
        ('{"op": "fly"}', "unknown operation 'fly'"),
        ('{"op": "create"}', "container_id None is no text"),
        ('{"op": "hello", "protocol": 99}', "protocol 99 is not the launcher's"),
        ('{"op": "exec", "container_id": "c", "argv": ["true"]}', "None is no timeout"),
        ('{"op": "signal", "container_id": ["c"]}', "is no text"),
    ):
        asking = await asyncio.create_subprocess_exec(
            *(BIN / "python", "-c", script, noise), stdout=subprocess.PIPE
        )
        said, _ = await asking.communicate()
        assert answer in said.decode()
    assert (await info(node, "c")).pid == pid


# -------------------------------------------------------------------- the launcher dies


async def test_a_killed_launcher_takes_no_container_with_it(node: Node) -> None:
    pid = await node.run("c", "sh", "-c", "echo one; read line; echo $line; sleep 1000")
    before = start_time(pid)
    node.kill("launcher")
    assert alive(pid)
    node.start_launcher()
    after = await info(node, "c")
    assert (after.state, after.pid, start_time(pid)) == ("running", pid, before)
    assert node.cgroups.stats("c").pids >= 1
    ended = await node.launcher.exec("c", ["hostname"], timeout_s=10)
    assert ended.output == b"c-host\n"


async def test_commands_of_a_killed_launcher_are_ended_by_the_next(node: Node) -> None:
    pid = await node.run("c", *FOREVER)
    running = asyncio.create_task(node.launcher.exec("c", ["sleep", "999"], timeout_s=999))
    await node.until(lambda: len(node.cgroups.pids("c")) == 2, "the command runs")
    node.kill("launcher")
    with pytest.raises(LauncherLostError):
        await running
    node.start_launcher()
    await node.until(lambda: node.cgroups.pids("c") == [pid], "the command is gone")
    assert (await node.launcher.exec("c", ["true"], timeout_s=10)).exit_code == 0


async def test_a_stopped_launcher_exits_with_0_and_takes_no_container_with_it(node: Node) -> None:
    pid = await node.run("c", *FOREVER)
    assert node.stop("launcher") == 0
    assert not (node.folder / "launcher.sock").exists()
    assert alive(pid)
    node.start_launcher()
    assert (await info(node, "c")).pid == pid


@pytest.mark.parametrize(
    ("script", "code", "number"), [("exit 23", 23, None), ("kill -9 $$", 137, 9)]
)
async def test_the_end_of_an_adopted_container_is_right(
    node: Node, script: str, code: int, number: int | None
) -> None:
    pid = await node.run("c", "sh", "-c", "trap 'exit 23' TERM; while :; do sleep 0.1; done")
    await node.until(lambda: catches(pid, signal.SIGTERM), "its trap is set")
    node.kill("launcher")
    node.start_launcher()
    await node.launcher.list()
    os.kill(pid, signal.SIGTERM if number is None else number)
    ended = await node.end("c")
    assert (ended.exit_code, ended.signal, ended.oom_killed) == (code, number, False)


@pytest.mark.linux_since(6, 15)
async def test_an_end_that_no_launcher_saw_is_right_since_the_pump_kept_the_pidfd(
    node: Node,
) -> None:
    script = "trap 'exit 23' TERM; echo ready; while :; do sleep 0.1; done"
    pid = await node.run("c", "sh", "-c", script)
    await node.until(lambda: node.lines("c") == ["ready\n"], "its trap is set")
    node.kill("launcher")
    os.kill(pid, signal.SIGTERM)
    await node.until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended and was reaped")
    node.start_launcher()
    assert (await node.end("c")).exit_code == 23


async def test_an_out_of_memory_kill_that_no_launcher_saw_is_told(node: Node) -> None:
    script = "read x < /dev/stdin; until [ -e /go ]; do sleep 0.05; done; exec tail /dev/zero"
    limits = Limits(memory_bytes=16 << 20)
    pid = await node.run("c", "sh", "-c", script, limits=limits)
    upper = node.folder / "containers/c/upper"
    node.kill("launcher")
    Path(f"/proc/{pid}/root/go").touch()
    await node.until(lambda: not Path(f"/proc/{pid}").exists(), "it was killed")
    node.start_launcher()
    ended = await node.end("c")
    assert ended.oom_killed
    assert ended.exit_code in {137, None}
    assert upper.exists()


async def test_an_end_that_nobody_kept_is_unknown_and_never_0(node: Node) -> None:
    pid = await node.run("c", "sh", "-c", "sleep 1000")
    node.kill("launcher")
    node.kill("pump")
    os.kill(pid, signal.SIGKILL)
    await node.until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended and was reaped")
    node.start_pump()
    node.start_launcher()
    ended = await node.end("c")
    assert (ended.exit_code, ended.signal, ended.oom_killed) == (None, None, False)
    assert (await info(node, "c")).state == "exited"


async def test_a_pid_that_belongs_to_another_process_is_not_adopted(node: Node) -> None:
    pid = await node.run("c", *FOREVER)
    node.kill("launcher")
    node.kill("pump")
    record = node.folder / "state/c.json"
    # As if the number had come round again: another process has it, started at another time.
    record.write_text(record.read_text().replace(f'"pid": {pid}', f'"pid": {os.getpid()}'))
    node.start_pump()
    node.start_launcher()
    assert (await node.end("c")).exit_code is None
    await node.launcher.remove("c")
    await node.until(lambda: not alive(pid), "what was left in its cgroup is killed")


async def test_after_a_reboot_nothing_is_adopted(node: Node) -> None:
    pid = await node.run("c", *FOREVER)
    node.kill("launcher")
    node.kill("pump")
    record = node.folder / "state/c.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record.write_text(record.read_text().replace(boot, "another-boot"))
    node.start_pump()
    node.start_launcher()
    assert (await node.end("c")).exit_code is None
    await node.launcher.remove("c")
    assert not alive(pid)


async def test_a_container_that_waited_goes_with_its_launcher(node: Node) -> None:
    bundle = node.bundle("c", *FOREVER)
    pid = await node.launcher.create("c", bundle)
    node.kill("launcher")
    await node.until(lambda: not alive(pid), "the child has noticed")
    node.start_launcher()
    assert await node.launcher.list() == []
    await node.until(lambda: cgroup_folders(node.cgroup_parent) == [], "its cgroup is gone")
    assert [path.name for path in bundle.iterdir()] == ["config.json"]


async def test_a_removal_cut_short_is_finished_by_the_next_launcher(node: Node) -> None:
    pid = await node.run("c", *FOREVER)
    node.kill("launcher")
    record = node.folder / "state/c.json"
    record.write_text(record.read_text().replace('"starting"', '"removing"'))
    node.start_launcher()
    await node.until(lambda: not alive(pid), "it is killed")
    await node.until(lambda: not record.exists(), "its record is gone")
    assert cgroup_folders(node.cgroup_parent) == []


async def test_a_record_cut_short_leaves_the_one_before_it(node: Node) -> None:
    pid = await node.run("c", *FOREVER)
    node.kill("launcher")
    with (node.folder / "state/c.json").open("a") as record:
        record.write('\n{"boot": "')
    node.start_launcher()
    assert (await info(node, "c")).pid == pid


async def test_records_that_make_no_sense_are_dropped_with_their_containers(node: Node) -> None:
    pid = await node.run("c", *FOREVER)
    node.kill("launcher")
    (node.folder / "state/c.json").write_text("")
    (node.folder / "state/d.json").write_text('{"id": "d"}')
    node.start_launcher()
    await node.until(lambda: not alive(pid), "what is unrecorded is killed")
    await node.until(lambda: cgroup_folders(node.cgroup_parent) == [], "its cgroup is gone")
    assert [path.name for path in (node.folder / "state").iterdir()] == ["lock"]


async def test_exits_missed_while_disconnected_are_told_once(node: Node) -> None:
    told: list[str] = []
    node.launcher.on_exit(lambda ended: told.append(ended.container_id))
    pids = [await node.run(name, *FOREVER) for name in ("one", "two")]
    os.kill(pids[0], signal.SIGKILL)
    await node.end("one")
    node.kill("launcher")
    os.kill(pids[1], signal.SIGKILL)
    node.start_launcher()
    await node.end("two")
    await node.launcher.list()
    assert told == ["one", "two"]


async def test_launcher_and_log_pump_tell_a_service_manager_that_they_serve_live_and_stop(
    node: Node, tmp_path: Path
) -> None:
    node.stop_all()
    for name, start in (("pump", node.start_pump), ("launcher", node.start_launcher)):
        with listening(tmp_path / f"{name}.notify") as manager:
            node.environment = manager.environment | {"WATCHDOG_USEC": "400000"}
            start()
            heard = await asyncio.to_thread(manager.hear, "WATCHDOG=1")
            assert heard == ["READY=1", f"STATUS=serves at {name}.sock", "WATCHDOG=1"]
            await asyncio.to_thread(manager.hear, "WATCHDOG=1")
            assert await asyncio.to_thread(node.stop, name) == 0
            manager.hear("STOPPING=1")
    node.environment = {}
    node.start_pump()
    node.start_launcher()
