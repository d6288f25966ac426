"""What a machine has of processes, mounts, cgroups, namespaces, interfaces, rules and ports.

Taken before and after, it tells what was left behind. On a machine that others use too,
whatever descends from a process that was there before, and is not of a local cluster,
is theirs.
"""

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import stretched

MARK = b"ESTIBA_DEV_CLUSTER="
LISTENING = "0A"
# The kernel destroys namespaces and cgroups a little after their last user.
SETTLE_S = stretched(5.0)
LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    started: int
    """Clock ticks since boot: with the pid, who it is."""
    parent: int
    name: str
    network: str
    marked: bool


@dataclass(frozen=True, slots=True)
class Footprint:
    processes: Mapping[tuple[int, int], Process]
    things: frozenset[str]

    @classmethod
    def take(cls) -> "Footprint":
        found = {(process.pid, process.started): process for process in _processes()}
        things = _mounts() | _cgroups() | _interfaces() | _tables() | _ports()
        return cls(found, frozenset(things))

    def left_behind(self, *, within_s: float = SETTLE_S) -> list[str]:
        """Return what is there now and was not then; waits a little for it to go away."""
        deadline = time.monotonic() + within_s
        while left := self._left_now():
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_EVERY_S)
        return left

    def _left_now(self) -> list[str]:
        now = Footprint.take()
        new = [
            process
            for key, process in now.processes.items()
            if key not in self.processes and not self._is_of_others(process, now)
        ]
        networks = {process.network for process in self.processes.values()}
        left = {f"process {process.pid} {process.name}" for process in new}
        left |= {f"namespace {process.network}" for process in new} - {
            f"namespace {network}" for network in networks
        }
        return sorted(left | (now.things - self.things))

    def _is_of_others(self, process: Process, now: "Footprint") -> bool:
        by_pid = {each.pid: each for each in now.processes.values()}
        while process.parent in by_pid:
            parent = by_pid[process.parent]
            if (parent.pid, parent.started) in self.processes:
                ours = parent.pid in {1, os.getpid()} or parent.marked
                return not ours
            process = parent
        # A thread of the kernel, which has no parent that we see.
        return process.parent == 0


def _processes() -> list[Process]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
            network, marked = _looked_into(folder)
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        fields = stat.rpartition(")")[2].split()
        # Source: proc_pid_stat(5), fields 3, 4 and 22. A zombie waits for its parent alone.
        if fields[0] != "Z" and fields[1] != "2":
            found.append(
                Process(int(folder.name), int(fields[19]), int(fields[1]), name, network, marked)
            )
    return found


def _looked_into(folder: Path) -> tuple[str, bool]:
    """Return a process's network namespace, and whether it is a local cluster's."""
    try:
        environment = (folder / "environ").read_bytes()
        return str((folder / "ns" / "net").readlink()), MARK in environment
    except PermissionError:
        # Some machines let not even root look into their first process.
        return "", False


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {f"mount {line.split()[4]}" for line in lines}


def _cgroups() -> set[str]:
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[words.index("-") + 1] in {"cgroup", "cgroup2"}:
            found |= {f"cgroup {folder}" for folder, _, _ in os.walk(words[4])}
    return found


def _interfaces() -> set[str]:
    return {f"interface {line.split()[0]}" for line in _lines("ip", "-br", "link")}


def _tables() -> set[str]:
    return {f"nft {line}" for line in _lines("nft", "list", "tables")}


def _ports() -> set[str]:
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING or protocol.startswith("udp"):
                found.add(f"port {protocol} {fields[1]}")
    return found


def _lines(*argv: str) -> list[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
