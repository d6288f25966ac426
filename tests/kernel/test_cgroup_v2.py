"""cgroup version 2: all of it, or without controllers, as a machine with version 1 has it."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.runtime.cgroups import ROOT, Cgroups
from agent.runtime.errors import ContainerError
from agent.runtime.limits import NO_LIMITS, Limits
from tests.support.waiting import eventually, stretched

UNIFIED = ROOT if (ROOT / "cgroup.controllers").exists() else ROOT / "unified"


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    cgroups = Cgroups(f"/estiba-test-{uuid.uuid4().hex[:12]}/n1", root=UNIFIED)
    cgroups.prepare()
    yield cgroups
    for name in cgroups.names():
        cgroups.kill_all(name)
        eventually(lambda name=name: cgroups.remove(name), within_s=5, what="it is empty")  # type: ignore[misc]
    cgroups.retire()
    parent = cgroups.entrances("")[0].parent
    assert not parent.exists()
    parent.parent.rmdir()


def entering(entrances: list[Path], *command: str) -> list[str]:
    """Return a command that first enters cgroups."""
    enter = "".join(f"echo 0 > {path}; " for path in entrances)
    return ["/bin/sh", "-c", f'{enter} exec "$@"', "sh", *command]


def test_a_container_has_one_cgroup_that_tells_its_processes(cgroups: Cgroups) -> None:
    assert cgroups.version == 2
    cgroups.create("c", NO_LIMITS)
    process = subprocess.Popen(entering(cgroups.entrances("c"), "sleep", "100"))
    eventually(lambda: cgroups.pids("c") == [process.pid], within_s=5, what="it is in")
    assert cgroups.stats("c").cpu_ns >= 0
    assert cgroups.stats("c").oom_kills == 0
    assert not cgroups.remove("c")
    cgroups.kill_all("c")
    assert process.wait(stretched(5)) == -9
    eventually(lambda: cgroups.remove("c"), within_s=5, what="it can be removed")
    assert cgroups.names() == set()


def test_an_inner_cgroup_is_killed_alone(cgroups: Cgroups) -> None:
    cgroups.create("c", NO_LIMITS)
    init = subprocess.Popen(entering(cgroups.entrances("c"), "sleep", "100"))
    command = subprocess.Popen(entering(cgroups.create_inner("c", "exec-1"), "sleep", "100"))
    eventually(
        lambda: sorted(cgroups.pids("c")) == sorted([init.pid, command.pid]),
        within_s=5,
        what="both are in",
    )
    cgroups.kill_inner("c", "exec-1")
    assert command.wait(stretched(5)) == -9
    eventually(lambda: cgroups.kill_inner("c", "exec-1"), within_s=5, what="it is removed")
    assert init.poll() is None
    cgroups.kill_all("c")
    init.wait(stretched(5))


def test_only_the_devices_of_a_container_can_be_opened(cgroups: Cgroups, tmp_path: Path) -> None:
    cgroups.create("c", NO_LIMITS)
    disk = Path("/").stat().st_dev
    script = (
        f"cd {tmp_path}; mknod disk b {os.major(disk)} {os.minor(disk)} && echo made;"
        " head -c1 disk 2> /dev/null || echo refused; mknod memory c 1 1;"
        " head -c1 memory 2> /dev/null || echo refused; head -c3 /dev/zero | wc -c"
    )
    said = subprocess.check_output(entering(cgroups.entrances("c"), "sh", "-c", script))
    assert said.decode().split() == ["made", "refused", "refused", "3"]
    # Done again, as a launcher does that comes back, it holds no less.
    cgroups.prepare()
    again = entering(cgroups.entrances("c"), "head", "-c1", str(tmp_path / "memory"))
    assert subprocess.run(again, check=False, timeout=stretched(10)).returncode == 1


@pytest.mark.cgroup(2)
def test_limits_are_what_the_kernel_has(cgroups: Cgroups) -> None:
    cgroups.create("c", Limits(nano_cpus=250_000_000, memory_bytes=64 << 20, pids=7))
    folder = cgroups.entrances("c")[0].parent
    names = ("cpu.max", "memory.max", "memory.swap.max", "pids.max")
    assert [(folder / name).read_text().strip() for name in names] == [
        "25000 100000",
        str(64 << 20),
        "0",
        "7",
    ]


@pytest.mark.cgroup(2)
def test_what_forks_without_end_is_killed_with_all_it_has_made(cgroups: Cgroups) -> None:
    cgroups.create("c", Limits(pids=50))
    bomb = "bomb() { bomb & bomb; }; bomb 2> /dev/null"
    process = subprocess.Popen(entering(cgroups.entrances("c"), "sh", "-c", bomb))
    eventually(lambda: cgroups.stats("c").pids > 30, within_s=5, what="there are many")
    cgroups.kill_all("c")
    process.wait(stretched(5))
    eventually(lambda: cgroups.remove("c"), within_s=5, what="it can be removed")


@pytest.mark.cgroup(2)
def test_a_parent_with_processes_of_its_own_is_named(cgroups: Cgroups) -> None:
    used = cgroups.entrances("")[0].parent.parent / "used"
    used.mkdir()
    process = subprocess.Popen(entering([used / "cgroup.procs"], "sleep", "100"))
    try:
        eventually((used / "cgroup.procs").read_text, within_s=5, what="it is in")
        with pytest.raises(OSError, match="has processes of its own") as refused:
            Cgroups(str(used.relative_to(UNIFIED)), root=UNIFIED).prepare()
        assert refused.value.filename == str(used)
    finally:
        process.kill()
        process.wait()
        used.rmdir()


@pytest.mark.cgroup(1)
def test_a_limit_without_its_controller_is_refused_and_leaves_nothing(cgroups: Cgroups) -> None:
    missing = {"cpu", "memory", "pids"} - set((UNIFIED / "cgroup.controllers").read_text().split())
    for name in missing:
        limits = {
            "cpu": Limits(nano_cpus=10**9),
            "memory": Limits(memory_bytes=64 << 20),
            "pids": Limits(pids=10),
        }[name]
        with pytest.raises(ContainerError) as refused:
            cgroups.create("c", limits)
        assert refused.value.message == f"this node has no {name} cgroup controller"
        assert cgroups.names() == set()
