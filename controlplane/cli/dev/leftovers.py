"""Find and end what belongs to a local cluster, whoever of its programs has been killed.

Every program of a cluster carries the cluster's folder in its environment, so that it
is found also when the supervisor died before it could write anything down. Containers
are found by their cgroups.
"""

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "ESTIBA_DEV_CLUSTER"

PATIENCE_S = 20.0


def marked(folder: Path) -> Iterator[int]:
    """Yield the pids of all processes that carry the cluster's mark."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and _is_marked(int(entry.name), folder):
            yield int(entry.name)


def _is_marked(pid: int, folder: Path) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return f"{MARK}={folder}".encode() in environment.split(b"\0")


def kill_marked(folder: Path) -> int:
    """Kill every process of the cluster and wait for its end; return how many there were.

    Whoever may start others is killed with the rest, and the search is repeated until
    it finds nobody.
    """
    killed = 0
    deadline = time.monotonic() + PATIENCE_S
    while pids := [pid for pid in marked(folder) if pid != os.getpid()]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pids[0]} of the cluster in {folder} does not end")
        killed += sum(_kill(pid, folder) for pid in pids)
    return killed


def _kill(pid: int, folder: Path) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The number may have passed to another process before the descriptor was open.
        if not _is_marked(pid, folder):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], PATIENCE_S)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def cgroup_mounts() -> list[Path]:
    """Return where the cgroup hierarchies of this machine are mounted.

    Source: proc(5), /proc/pid/mountinfo: the type follows a lone hyphen.
    """
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[words.index("-") + 1] in {"cgroup", "cgroup2"}:
            found.append(Path(words[4]))
    return found


def remove_cgroups(name: str) -> None:
    """Kill what lives in the cgroups below ``name``, such as "/estiba-1a2b", and remove them."""
    trees = [mount / name.lstrip("/") for mount in cgroup_mounts()]
    deadline = time.monotonic() + PATIENCE_S
    while trees := [tree for tree in trees if tree.is_dir()]:
        for tree in trees:
            _thaw(tree)
        for tree in trees:
            _empty(tree)
        if time.monotonic() > deadline:
            raise TimeoutError(f"the cgroup {trees[0]} does not become empty")
        # A group is busy until the kernel has let go of its last process: no event tells.
        time.sleep(0.005)


def _thaw(tree: Path) -> None:
    """Let frozen processes go on: on v1 SIGKILL waits until they do."""
    for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        for file in tree.rglob(name):
            try:
                file.write_text(word)
            except FileNotFoundError:
                continue


def _empty(tree: Path) -> None:
    for folder, _, _ in os.walk(tree, topdown=False):
        try:
            for word in Path(folder, "cgroup.procs").read_text().split():
                _kill_now(int(word))
            Path(folder).rmdir()
        except OSError:
            # Gone, or still busy: the caller looks again.
            continue


def _kill_now(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
