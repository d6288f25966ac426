"""Commands run inside a container, for health checks."""

import asyncio
import os
from pathlib import Path

import pytest

from agent.errors import LaunchError
from agent.runtime.limits import Limits
from tests.support.containers import Node, alive, cgroup_folders, namespace


async def test_a_command_runs_in_all_namespaces_of_the_container(node: Node) -> None:
    await node.run("c", "sleep", "100")
    kinds = ("pid", "net", "mnt", "ipc", "uts", "cgroup")
    script = "for k in pid net mnt ipc uts cgroup; do ls -l /proc/self/ns/$k; done; hostname"
    ended = await node.launcher.exec("c", ["sh", "-c", script], timeout_s=10)
    inside = ended.output.decode().splitlines()
    assert inside.pop() == "c-host"
    pid = node.cgroups.pids("c")[0]
    for kind, line in zip(kinds, inside, strict=True):
        assert line.endswith(namespace(pid, kind))


async def test_a_command_has_the_containers_user_rights_environment_and_folder(
    node: Node,
) -> None:
    await node.run("c", "sleep", "100", user="ana", env=["A=b"], cwd="/srv/app")
    script = "id -u; id -G; pwd; echo $A $HOME; grep -E 'Cap(Prm|Eff|Bnd)|NoNew' /proc/self/status"
    ended = await node.launcher.exec("c", ["sh", "-c", script], timeout_s=10)
    status = Path(f"/proc/{node.cgroups.pids('c')[0]}/status").read_text().splitlines()
    names = ("CapPrm", "CapEff", "CapBnd", "NoNewPrivs")
    assert ended.output.decode().splitlines() == [
        *("1000", "1000 2000", "/srv/app", "b /home/ana"),
        *(line for line in status if line.startswith(names)),
    ]


async def test_a_command_is_in_every_cgroup_of_the_container(node: Node) -> None:
    await node.run("c", "sleep", "100", limits=Limits(memory_bytes=32 << 20))
    running = asyncio.create_task(node.launcher.exec("c", ["sleep", "100"], timeout_s=100))
    await node.until(lambda: len(node.cgroups.pids("c")) == 2, "the command runs")
    init, command = sorted(node.cgroups.pids("c"))
    for line in Path(f"/proc/{command}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":")
        if controllers in {"cpu", "cpuacct", "memory", "pids", "devices"}:
            assert path == f"{node.cgroup_parent}/c"
        if controllers == "freezer":
            assert path.startswith(f"{node.cgroup_parent}/c/exec-")
    assert alive(init)
    os.kill(command, 9)
    assert (await running).exit_code == 137


async def test_exit_code_and_the_first_four_kibibytes_are_returned(node: Node) -> None:
    await node.run("c", "sleep", "100")
    script = "echo to stderr >&2; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"
    ended = await node.launcher.exec("c", ["sh", "-c", f"{script}; exit 7"], timeout_s=10)
    assert ended.exit_code == 7
    assert not ended.timed_out
    assert len(ended.output) == 4096
    assert ended.output.startswith(b"to stderr\nline 0\nline 1\n")


async def test_a_command_that_takes_too_long_is_killed_with_all_it_started(node: Node) -> None:
    await node.run("c", "sleep", "100")
    script = "setsid sleep 1000 & (setsid sleep 1001 &) ; echo started; exec sleep 1002"
    ended = await node.launcher.exec("c", ["sh", "-c", script], timeout_s=0.5)
    assert ended.timed_out
    assert ended.exit_code == 137
    assert ended.output == b"started\n"
    await node.until(lambda: len(node.cgroups.pids("c")) == 1, "nothing of it is left")
    await node.until(lambda: not _inner(node), "its cgroup is gone")


async def test_what_a_command_leaves_running_is_killed(node: Node) -> None:
    await node.run("c", "sleep", "100")
    ended = await node.launcher.exec("c", ["sh", "-c", "sleep 1000 & exit 0"], timeout_s=10)
    assert (ended.exit_code, ended.timed_out) == (0, False)
    await node.until(lambda: len(node.cgroups.pids("c")) == 1, "nothing of it is left")
    await node.until(lambda: not _inner(node), "its cgroup is gone")


async def test_a_command_that_cannot_run_is_a_fault_of_its_own(node: Node) -> None:
    await node.run("c", "sleep", "100")
    with pytest.raises(LaunchError, match="command not found: nothing"):
        await node.launcher.exec("c", ["nothing"], timeout_s=10)
    with pytest.raises(LaunchError, match="there is no command to run"):
        await node.launcher.exec("c", [], timeout_s=10)
    await node.until(lambda: not _inner(node), "its cgroup is gone")


async def test_no_command_runs_in_what_does_not_run(node: Node) -> None:
    with pytest.raises(LaunchError, match="there is no container c"):
        await node.launcher.exec("c", ["true"], timeout_s=10)
    await node.run("c", "true")
    await node.end("c")
    with pytest.raises(LaunchError, match="container c has ended"):
        await node.launcher.exec("c", ["true"], timeout_s=10)


async def test_a_container_that_ends_ends_its_commands(node: Node) -> None:
    await node.run("c", "sleep", "100")
    running = asyncio.create_task(node.launcher.exec("c", ["sleep", "100"], timeout_s=100))
    await node.until(lambda: len(node.cgroups.pids("c")) == 2, "the command runs")
    await node.launcher.kill("c")
    assert (await running).exit_code == 137


async def test_many_commands_at_once_leave_no_descriptor_open(node: Node) -> None:
    await node.run("c", "sleep", "100")
    descriptors = Path(f"/proc/{node.pid('launcher')}/fd")
    before = len(list(descriptors.iterdir()))
    ended = await asyncio.gather(
        *(node.launcher.exec("c", ["sh", "-c", f"exit {n}"], timeout_s=10) for n in range(20))
    )
    assert [each.exit_code for each in ended] == list(range(20))
    await node.until(lambda: not _inner(node), "their cgroups are gone")
    assert len(list(descriptors.iterdir())) == before


def _inner(node: Node) -> list[Path]:
    return [path for path in cgroup_folders(node.cgroup_parent) if "exec-" in path.name]
