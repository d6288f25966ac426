"""The machines of the cluster as root sees them over ssh, and the cluster as `estiba` tells it."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.cluster.hypervisor import SCRATCH
from tests.vm.image import Image

LOOK = (Path(__file__).parent / "look.py").read_text()
# Software emulation: what takes a second elsewhere.
COMMAND_WITHIN_S = 180.0


class MachineError(Exception):
    """A command on a machine failed; tells what it said."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine, by its address in the private network."""

    name: str
    address: str
    image: Image

    @property
    def domain(self) -> str:
        """What libvirt calls it: Vagrant puts the name of the Vagrantfile's folder before."""
        folder = re.sub(r"[^-a-zA-Z0-9_.]", "", Path(__file__).parents[3].name)
        return f"{folder}_{self.name}"

    def run(self, command: str, *, stdin: str = "", check: bool = True) -> str:
        """Run a shell command as root; return what it printed.

        Raises:
            MachineError: it failed, and ``check`` was asked for, or the machine cannot be reached.
        """
        try:
            done = subprocess.run(
                [*self._ssh(), f"root@{self.address}", command],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=COMMAND_WITHIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"{self.name}: {command}: longer than {error.timeout} s") from error
        if done.returncode == 255 or (check and done.returncode):
            raise MachineError(f"{self.name}: {command}: {done.stderr.strip()} {done.stdout}")
        return done.stdout

    def look(self) -> dict[str, Any]:
        """Return what the kernel has of containers: `look.py`."""
        found: dict[str, Any] = json.loads(self.run("/usr/bin/python3 -", stdin=LOOK))
        return found

    def boot_id(self) -> str:
        """Return which start of the machine this is; nothing while it does not answer."""
        # Over a connection of its own: a shared one may be with the machine as it was.
        self._hang_up()
        try:
            return self.run("cat /proc/sys/kernel/random/boot_id").strip()
        except MachineError:
            return ""

    def reboot(self) -> None:
        """Have it begin to reboot, just after this connection has ended."""
        self.run("systemd-run --quiet --on-active=1s systemctl reboot")
        self._hang_up()

    def _hang_up(self) -> None:
        words = [*self._ssh(), "-O", "exit", f"root@{self.address}"]
        subprocess.run(words, capture_output=True, timeout=COMMAND_WITHIN_S, check=False)

    def _ssh(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "20",
            "ControlMaster": "auto",
            "ControlPath": str(SCRATCH / f"ssh-{self.name}"),
            "ControlPersist": "yes",
            "HostKeyAlias": "machine",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "ServerAliveInterval": "5",
            "UserKnownHostsFile": str(self.image.known_hosts),
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", "-i", str(self.image.key), *words]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the control plane says."""

    control_plane: Machine

    def estiba(self, *words: str) -> str:
        return self.control_plane.run(" ".join(("estiba", *words)))

    def json(self, *words: str) -> Any:
        return json.loads(self.estiba(*words, "-o", "json"))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the nodes by their names."""
        return {node["metadata"]["name"]: node for node in self.json("node", "ls")}

    def ready(self) -> set[str]:
        return {
            name
            for name, node in self.nodes().items()
            if node.get("status", {}).get("state") == "NODE_STATE_READY"
        }

    def running(self, service: str) -> dict[str, list[str]]:
        """Return the ids of the tasks that run and shall run, by the name of their node."""
        names = {node["metadata"]["id"]: name for name, node in self.nodes().items()}
        found: dict[str, list[str]] = {}
        for task in self.json("service", "ps", service):
            if (
                task["desired"] == "DESIRED_STATE_RUNNING"
                and task.get("status", {}).get("state") == "TASK_STATE_RUNNING"
                and not task.get("lost_since")
            ):
                found.setdefault(names[task["node_id"]], []).append(task["metadata"]["id"])
        return found
