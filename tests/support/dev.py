"""A dev cluster under test: start it, type at it, break it, count what the kernel has."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually

BIN = Path(sys.executable).parent
IMAGE = "registry.estiba:5000/hello"


@dataclass(frozen=True, slots=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


class DevCluster:
    """One cluster of ``estiba dev up`` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # ------------------------------------------------------------------ typing at it

    def run(self, *words: str, stdin: str | None = None, timeout_s: float = 180.0) -> Said:
        """Run ``estiba WORDS`` against this cluster, whatever its exit code."""
        done = subprocess.run(
            [str(BIN / "estiba"), *words],
            input=stdin,
            env=os.environ | {"ESTIBA_DIR": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def estiba(self, *words: str, stdin: str | None = None, timeout_s: float = 180.0) -> str:
        """Run ``estiba WORDS``, demand exit code 0, return what it printed."""
        said = self.run(*words, stdin=stdin, timeout_s=timeout_s)
        assert said.code == 0, f"estiba {' '.join(words)}: exit {said.code}: {said.err}{said.out}"
        return said.out

    def json(self, *words: str) -> Any:
        return json.loads(self.estiba(*words, "-o", "json"))

    def create(
        self, name: str, *options: str, replicas: int = 3, command: Sequence[str] = ()
    ) -> None:
        """Create a service and wait until it runs. What ignores SIGTERM is soon killed."""
        self.estiba(
            *("service", "create", "--name", name, "--replicas", str(replicas)),
            *("--stop-grace-period", "1s", *options),
            *(IMAGE, *command),
        )

    def remove(self, *names: str) -> None:
        self.estiba("service", "rm", *names)

    # ------------------------------------------------------------------ what it says

    def up(self, *, nodes: int = 3) -> None:
        self.estiba("dev", "up", "--dir", str(self.folder), "--nodes", str(nodes), timeout_s=120)

    def down(self) -> None:
        self.estiba("dev", "down", "--dir", str(self.folder), timeout_s=120)

    @property
    def described(self) -> dict[str, Any]:
        """``cluster.json``: servers, certificates, nodes."""
        described: dict[str, Any] = json.loads((self.folder / "cluster.json").read_text())
        return described

    def programs(self) -> dict[str, dict[str, Any]]:
        """Every program of the cluster by its name, as ``estiba dev status`` knows it."""
        status = self.json("dev", "status", "--dir", str(self.folder))
        return {program["name"]: program for program in status["programs"]}

    def pid(self, program: str) -> int:
        pid: int = self.programs()[program]["pid"]
        return pid

    def tasks(self, service: str) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = self.json("service", "ps", service)
        return tasks

    def running(self, service: str) -> list[dict[str, Any]]:
        """Return the tasks that are wanted and observed running."""
        return [
            task
            for task in self.tasks(service)
            if task["desired"] == "DESIRED_STATE_RUNNING"
            and task.get("status", {}).get("state") == "TASK_STATE_RUNNING"
            and not task.get("lost_since")
        ]

    def pids(self, service: str) -> dict[str, int]:
        """Map the ids of running tasks to the pids of their first processes."""
        return {
            task["metadata"]["id"]: int(task["status"]["pid"]) for task in self.running(service)
        }

    # ------------------------------------------------------------------ what the kernel says

    def cgroup_parents(self) -> dict[str, str]:
        """Map the host names of the nodes to the cgroups that their containers live under."""
        return {node["hostname"]: node["cgroup_parent"] for node in self.described["nodes"]}

    def inits(self) -> dict[str, list[int]]:
        """Count containers without asking Estiba: first processes of pid namespaces, by node."""
        found: dict[str, list[int]] = {name: [] for name in self.cgroup_parents()}
        for pid, cgroups, nspid in processes():
            if len(nspid) > 1 and nspid[-1] == 1:
                for name, parent in self.cgroup_parents().items():
                    if f"{parent}/" in cgroups:
                        found[name].append(pid)
        return found

    def containers_of(self, service_id: str) -> int:
        """Count the processes in containers of a service, also of one that was removed."""
        return sum(f"/{service_id}." in cgroups for _, cgroups, _ in processes())

    # ------------------------------------------------------------------ breaking it

    def kill(self, program: str) -> int:
        """Send SIGKILL to one program of the cluster; return the pid it had."""
        pid = self.pid(program)
        os.kill(pid, signal.SIGKILL)
        return pid

    def restarted(self, program: str, old_pid: int, *, within_s: float = 20.0) -> int:
        """Wait until the program runs again under another pid."""

        def look() -> int:
            state = self.programs()[program]
            return state["pid"] if state.get("pid") not in {None, 0, old_pid} else 0

        return eventually(look, within_s=within_s, what=f"{program} runs again")

    def cut(self, node: str) -> None:
        """Take a node off the fabric."""
        self._link(node, "down")

    def heal(self, node: str) -> None:
        self._link(node, "up")

    def _link(self, node: str, state: str) -> None:
        # The port of the fabric's bridge, not the node's own link: that would lose its routes.
        relay = self.pid("relay")
        subprocess.run(
            ["nsenter", f"--net=/proc/{relay}/ns/net", "ip", "link", "set", f"p-{node}", state],
            check=True,
        )


def processes() -> Iterator[tuple[int, str, list[int]]]:
    """Yield pid, the text of /proc/PID/cgroup, and the pids it has in its namespaces."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            cgroups = (folder / "cgroup").read_text()
            status = (folder / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        nspid = next(line for line in status.splitlines() if line.startswith("NSpid:"))
        yield int(folder.name), cgroups, [int(word) for word in nspid.split()[1:]]


def start_time(pid: int) -> int:
    """Return when a process started, clock ticks since boot: with the pid, who it is.

    Source: proc_pid_stat(5), field 22.
    """
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
