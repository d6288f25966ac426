"""Where this machine has its cgroups, for tests that look at them with eyes of their own."""

from pathlib import Path

from agent.runtime.cgroups import ROOT
from controlplane.cli.dev.leftovers import cgroup_mounts

VERSION = 2 if (ROOT / "cgroup.controllers").exists() else 1

MEMORY_LIMIT = "memory.max" if VERSION == 2 else "memory.limit_in_bytes"
MEMORY_USAGE = "memory.current" if VERSION == 2 else "memory.usage_in_bytes"


def folder_of(path: str, controller: str) -> Path:
    """Return where a cgroup's files of a controller are."""
    return (ROOT if VERSION == 2 else ROOT / controller) / path.strip("/")


def folder_of_process(pid: int, controller: str) -> Path:
    """Return where the files of a controller are that count for a process.

    Source: cgroups(7), /proc/PID/cgroup: one line for each hierarchy, of v2 "0::PATH".
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" if VERSION == 2 else controller in controllers.split(","):
            return folder_of(path, controller)
    raise AssertionError(f"process {pid} is in no {controller} cgroup")


def folders_of(path: str) -> list[Path]:
    """Return a cgroup's folders, one for each hierarchy that has it."""
    folders = (mount / path.strip("/") for mount in cgroup_mounts())
    return [folder for folder in folders if folder.is_dir()]


def freeze(path: str) -> None:
    """Stop all processes of a cgroup."""
    if VERSION == 2:
        (folder_of(path, "freezer") / "cgroup.freeze").write_text("1")
    else:
        (folder_of(path, "freezer") / "freezer.state").write_text("FROZEN")


def cpu_quota(folder: Path) -> tuple[int, int]:
    """Return the processor time that a cgroup may use in each period, and the period, in us."""
    if VERSION == 2:
        quota_us, period_us = (folder / "cpu.max").read_text().split()
        return int(quota_us), int(period_us)
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    quota_us, period_us = ((folder / name).read_text() for name in names)
    return int(quota_us), int(period_us)


def field(file: Path, name: str) -> int:
    """Return one number of a file of lines ``NAME NUMBER``."""
    return int(dict(line.split() for line in file.read_text().splitlines())[name])


def cpu_used_ns(pid: int) -> int:
    """Return the processor time that a process's cgroup has used."""
    if VERSION == 2:
        return field(folder_of_process(pid, "cpu") / "cpu.stat", "usage_usec") * 1000
    return int((folder_of_process(pid, "cpuacct") / "cpuacct.usage").read_text())
