"""Limits that the kernel enforces, and what it tells of them."""

import signal

import pytest

from agent.errors import LaunchError
from agent.runtime.limits import Limits
from tests.support import cgroups
from tests.support.cgroups import field
from tests.support.containers import Node, cgroup_folders

MIB = 1024 * 1024
SPIN = "while :; do :; done"


async def test_a_container_beyond_its_memory_is_killed_and_that_is_told(node: Node) -> None:
    # tail keeps its input until the first line ends, which it never does.
    await node.run("c", "tail", "/dev/zero", limits=Limits(memory_bytes=16 * MIB))
    ended = await node.end("c")
    assert (ended.exit_code, ended.signal, ended.oom_killed) == (137, signal.SIGKILL, True)


async def test_a_kill_by_hand_is_not_taken_for_one_for_memory(node: Node) -> None:
    await node.run("c", "sleep", "100", limits=Limits(memory_bytes=16 * MIB))
    await node.launcher.kill("c")
    ended = await node.end("c")
    assert (ended.exit_code, ended.signal, ended.oom_killed) == (137, signal.SIGKILL, False)


async def test_the_smallest_memory_limit_is_enough_to_start(node: Node) -> None:
    await node.run("c", "true", limits=Limits(memory_bytes=4 * MIB))
    ended = await node.end("c")
    assert (ended.exit_code, ended.oom_killed) == (0, False)


async def test_a_cpu_limit_throttles(node: Node) -> None:
    await node.run("c", "sh", "-c", SPIN, limits=Limits(nano_cpus=200_000_000))
    stat = cgroups.folder_of(f"{node.cgroup_parent}/c", "cpu") / "cpu.stat"
    await node.until(lambda: field(stat, "nr_throttled") > 3, "the kernel has throttled it")
    periods, used_ns = field(stat, "nr_periods"), node.cgroups.stats("c").cpu_ns
    await node.until(lambda: field(stat, "nr_periods") >= periods + 10, "ten periods pass")
    after = node.cgroups.stats("c")
    passed = field(stat, "nr_periods") - periods
    # 20 ms in each period of 100 ms, and a little for the measurement itself.
    assert after.cpu_ns - used_ns <= (passed + 2) * 20_000_000 * 1.2
    assert after.throttled_ns > 0


async def test_a_pids_limit_stops_a_fork_bomb(node: Node) -> None:
    await node.run("c", "sh", "-c", "while :; do sleep 100 & done", limits=Limits(pids=10))
    await node.until(
        lambda: any("fork" in line for line in node.entries("c")), "the shell cannot fork"
    )
    assert node.cgroups.stats("c").pids <= 10
    assert len(node.cgroups.pids("c")) <= 10


async def test_stats_tell_what_it_uses(node: Node) -> None:
    await node.run(
        "c", "sh", "-c", "head -c 8000000 /dev/urandom > /dev/shm/kept; echo kept; exec sleep 9"
    )
    await node.until(lambda: node.lines("c") == ["kept\n"], "memory is used")
    stats = node.cgroups.stats("c")
    assert stats.cpu_ns > 0
    assert stats.pids == 1
    assert stats.memory_bytes > 7_000_000
    assert stats.oom_kills == 0
    assert stats.memory_bytes < 64 * MIB


async def test_files_that_were_read_are_no_part_of_the_working_set(node: Node) -> None:
    read_twice = "head -c 30000000 /dev/zero > /big; cat /big > /dev/null; cat /big > /dev/null"
    await node.run("c", "sh", "-c", f"{read_twice}; echo done; exec sleep 100")
    await node.until(lambda: node.lines("c") == ["done\n"], "a large file was read")
    folder = cgroups.folder_of(f"{node.cgroup_parent}/c", "memory")
    usage = int((folder / cgroups.MEMORY_USAGE).read_text())
    assert usage > 30_000_000
    assert node.cgroups.stats("c").memory_bytes <= usage


async def test_stats_of_no_container_are_not_found(node: Node) -> None:
    with pytest.raises(FileNotFoundError):
        node.cgroups.stats("nothing")
    with pytest.raises(FileNotFoundError):
        node.cgroups.pids("nothing")
    assert node.cgroups.oom_kills("nothing") == 0


async def test_a_limit_below_what_works_is_refused_with_its_reason(node: Node) -> None:
    def too_little(spec: dict[str, object]) -> None:
        linux = spec["linux"]
        assert isinstance(linux, dict)
        linux["resources"] = {
            "memory": {"limit": 1000},
            "cpu": {"quota": 500, "period": 100_000},
        }

    with pytest.raises(LaunchError) as refused:
        await node.run("c", "true", change=too_little)
    assert refused.value.stage == "limits"
    assert "memory limit 1000 bytes is below 4194304 bytes (4 MiB)" in str(refused.value)
    assert "cpu limit 0.005 is below 0.01" in str(refused.value)
    assert cgroup_folders(node.cgroup_parent) == []
