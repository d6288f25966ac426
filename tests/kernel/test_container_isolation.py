"""What a container is and may, read back from the kernel while it runs."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from agent.kernel import caps
from agent.runtime.spec import CAPABILITIES
from tests.support.cgroups import VERSION
from tests.support.containers import Node, namespace, read, status

OWN_CGROUP = "/sys/fs/cgroup" if VERSION == 2 else "/sys/fs/cgroup/pids"

NAMESPACES = ("pid", "net", "mnt", "ipc", "uts", "cgroup")


async def test_two_containers_share_no_namespace_with_each_other_or_the_node(node: Node) -> None:
    pids = [await node.run(name, "sleep", "100") for name in ("one", "two")]
    who: list[int | str] = [*pids, "self"]
    for kind in NAMESPACES:
        assert len({namespace(each, kind) for each in who}) == 3, kind


async def test_its_command_is_process_1_with_a_host_name_and_an_interface_of_its_own(
    node: Node,
) -> None:
    said = await node.output("c", "sh", "-c", "echo $$; hostname; ls /sys/class/net; ip -4 addr")
    lines = said.splitlines()
    assert lines[:3] == ["1", "c-host", "lo"]
    assert "inet 127.0.0.1/8" in said


async def test_ps_inside_shows_its_own_processes_alone(node: Node) -> None:
    await node.run("neighbour", "sleep", "100")
    said = await node.output("c", "ps", "-o", "pid,args")
    assert said.splitlines() == ["PID   COMMAND", "    1 ps -o pid,args"]


async def test_its_mounts_are_its_own_and_name_no_folder_of_the_node(node: Node) -> None:
    pid = await node.run("c", "sleep", "100")
    mounts = [line.split() for line in read(pid, "mountinfo").splitlines()]
    assert {fields[4] for fields in mounts} >= {
        "/",
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/sys",
    }
    assert str(node.folder) not in read(pid, "mountinfo")
    assert "/containers/" not in read("self", "mountinfo")


async def test_root_has_dockers_capabilities_without_net_raw(node: Node) -> None:
    pid = await node.run("c", "sleep", "100")
    wanted = caps.mask(CAPABILITIES)
    assert len(CAPABILITIES) == 13
    assert "CAP_NET_RAW" not in CAPABILITIES
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status(pid, name), 16) == wanted, name
    for name in ("CapInh", "CapAmb"):
        assert int(status(pid, name), 16) == 0, name


async def test_another_user_has_no_capability_and_nobody_can_gain_one(node: Node) -> None:
    pid = await node.run("c", "sleep", "100", user="ana")
    for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(status(pid, name), 16) == 0, name
    assert status(pid, "NoNewPrivs") == "1"


@pytest.mark.parametrize(
    ("user", "uids", "groups"),
    [
        ("", "0 0", ""),
        ("ana", "1000 1000", "2000"),
        ("ana:crew", "1000 2000", ""),
        ("1000", "1000 1000", "2000"),
        ("4711", "4711 0", ""),
        ("4711:4712", "4711 4712", ""),
    ],
)
async def test_it_runs_as_the_user_it_names(node: Node, user: str, uids: str, groups: str) -> None:
    pid = await node.run("c", "sleep", "100", user=user)
    uid, gid = uids.split()
    assert status(pid, "Uid").split() == [uid] * 4
    assert status(pid, "Gid").split() == [gid] * 4
    assert status(pid, "Groups") == groups


async def test_its_environment_is_what_was_asked_with_path_home_and_host_name(node: Node) -> None:
    said = await node.output("c", "env", env=("A=1", "B=x=y", "A=2"), user="ana")
    assert sorted(said.splitlines()) == [
        "A=2",
        "B=x=y",
        "HOME=/home/ana",
        "HOSTNAME=c-host",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]


async def test_it_inherits_no_descriptor_no_blocked_signal_and_no_ignored_one(node: Node) -> None:
    pid = await node.run("c", "sleep", "100")
    assert sorted(path.name for path in Path(f"/proc/{pid}/fd").iterdir()) == ["0", "1", "2"]
    assert int(status(pid, "SigBlk"), 16) == 0
    assert int(status(pid, "SigIgn"), 16) == 0
    assert read(pid, "oom_score_adj").strip() == "0"
    own = next(line for line in read("self", "limits").splitlines() if "open files" in line)
    assert own in read(pid, "limits").splitlines()


async def test_kernel_paths_are_masked_or_read_only(node: Node) -> None:
    looks = (
        "cat /proc/keys /proc/timer_list /proc/interrupts; ls -A /sys/firmware;"
        " echo 1 > /proc/sys/kernel/domainname; echo 1 > /proc/irq/default_smp_affinity;"
        f" mkdir {OWN_CGROUP}/mine /sys/mine; echo end"
    )
    assert await node.output("c", "sh", "-c", looks) == "end\n"
    refusals = node.lines("c", "stderr")
    assert len(refusals) == 4
    assert all("Read-only file system" in line for line in refusals[:3])


async def test_devices_of_the_node_cannot_be_opened(node: Node) -> None:
    disk = Path("/").stat().st_dev
    said = await node.output(
        "c",
        *("sh", "-c"),
        f"mknod /disk b {os.major(disk)} {os.minor(disk)} && head -c1 /disk;"
        " mknod /memory c 1 1 && head -c1 /memory; mknod /mine c 1 5 && head -c1 /mine | wc -c;"
        " ls /dev",
    )
    devices = ["fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"]
    devices += ["stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    assert said.splitlines() == ["1", *devices]
    refusals = node.lines("c", "stderr")
    assert len(refusals) == 2
    assert all("Operation not permitted" in line for line in refusals)


async def test_ping_and_ports_below_1024_need_no_capability(node: Node) -> None:
    pid = await node.run("c", "nc", "-l", "-p", "80", user="ana")
    # State 0A is listening. Source: proc(5), /proc/net/tcp.
    await node.until(lambda: " 0A " in read(pid, "net/tcp") + read(pid, "net/tcp6"), "nc listens")
    # busybox' own ping insists on NET_RAW, so another program asks, in the same namespace.
    asking = await asyncio.create_subprocess_exec(
        *("nsenter", f"--net=/proc/{pid}/ns/net"),
        *("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all"),
        *(sys.executable, "-c", PING),
    )
    assert await asking.wait() == 0


PING = """
import socket
ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
ping.settimeout(5)
ping.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]), ("127.0.0.1", 0))
assert ping.recv(100)[0] == 0
"""


async def test_a_user_can_open_its_own_output_again(node: Node) -> None:
    assert await node.output("c", "sh", "-c", "echo words > /dev/stdout", user="ana") == "words\n"


async def test_it_sees_its_own_cgroup_as_the_root(node: Node) -> None:
    said = await node.output("c", "cat", "/proc/self/cgroup")
    own = {"cpu", "cpuacct", "memory", "pids", "devices", "freezer"} if VERSION == 1 else {""}
    for line in said.splitlines():
        _, controllers, path = line.split(":")
        if seen := own & set(controllers.split(",")):
            assert path == "/"
            own -= seen
    assert own == set()
    assert await node.output("d", "cat", f"{OWN_CGROUP}/cgroup.procs") == "1\n"


async def test_the_launchers_interpreter_cannot_be_written_through_proc(node: Node) -> None:
    for name in ("launcher", "pump"):
        descriptor = os.open(f"/proc/{node.pid(name)}/exe", os.O_RDONLY)
        try:
            assert os.fstatvfs(descriptor).f_flag & os.ST_RDONLY
        finally:
            os.close(descriptor)


async def test_the_programs_have_names_of_their_own(node: Node) -> None:
    assert read(node.pid("launcher"), "comm").strip() == "estiba-launcher"
    assert read(node.pid("pump"), "comm").strip() == "estiba-log-pump"
    assert Path(f"/proc/{node.pid('launcher')}/exe").exists()
