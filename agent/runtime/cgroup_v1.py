"""cgroup version 1: one hierarchy for each controller."""

from pathlib import Path

from agent.runtime.cgroup_files import (
    CgroupStats,
    Hierarchy,
    missing_controllers,
    read_fields,
    read_number,
)
from agent.runtime.limits import Limits, Setting, version_1

_WANTED = ("cpu", "cpuacct", "memory", "pids", "devices", "freezer")
_NEEDED = {"cpuacct", "memory", "devices", "freezer"}

_DEVICE_RULES = (
    # Nodes may be made, since that alone opens nothing.
    *("c *:* m", "b *:* m"),
    # null, zero, full, random, urandom, tty, console, ptmx, pts.
    *("c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm"),
    *("c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm"),
)


class Version1(Hierarchy):
    """The controllers mounted below /sys/fs/cgroup that a container needs."""

    version = 1

    def __init__(self, root: Path, parent: str) -> None:
        self._root = root
        self._parent = parent.strip("/")
        self._controllers = [name for name in _WANTED if (root / name / "cgroup.procs").exists()]
        lacking = sorted(_NEEDED - set(self._controllers))
        if lacking:
            raise OSError(f"{root} has no cgroup controller {', '.join(lacking)}")

    def folder(self, controller: str, container_id: str) -> Path:
        return self._root / controller / self._parent / container_id

    def folders(self, container_id: str) -> list[Path]:
        return [self.folder(controller, container_id) for controller in self._controllers]

    def tracker(self, container_id: str) -> Path:
        return self.folder("freezer", container_id)

    def prepare(self) -> None:
        """Make the parent in every hierarchy; containers inherit its rules about devices.

        Eleven writes for every container are saved by writing them here once. The
        kernel takes back the right to all devices only while there are no children.

        Source: Linux admin-guide/cgroup-v1/devices, "Hierarchy".
        """
        for folder in self.folders(""):
            folder.mkdir(parents=True, exist_ok=True)
        devices = self.folder("devices", "")
        if (devices / "devices.list").read_text().startswith("a "):
            (devices / "devices.deny").write_text("a")
        for rule in _DEVICE_RULES:
            (devices / "devices.allow").write_text(rule)

    def settings(self, limits: Limits) -> list[Setting]:
        settings = version_1(limits)
        if not {setting.controller for setting in settings} <= set(self._controllers):
            raise missing_controllers(settings, self._controllers)
        return settings

    def freeze(self, folder: Path, *, frozen: bool) -> None:
        (folder / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def stats(self, container_id: str) -> CgroupStats:
        memory = self.folder("memory", container_id)
        usage = read_number(memory / "memory.usage_in_bytes")
        inactive = read_fields(memory / "memory.stat").get("total_inactive_file", 0)
        throttled_ns = pids = 0
        if "cpu" in self._controllers:
            cpu = self.folder("cpu", container_id)
            throttled_ns = read_fields(cpu / "cpu.stat").get("throttled_time", 0)
        if "pids" in self._controllers:
            pids = read_number(self.folder("pids", container_id) / "pids.current")
        return CgroupStats(
            cpu_ns=read_number(self.folder("cpuacct", container_id) / "cpuacct.usage"),
            throttled_ns=throttled_ns,
            memory_bytes=max(0, usage - inactive),
            pids=pids,
            oom_kills=self.oom_kills(container_id),
        )

    def oom_kills(self, container_id: str) -> int:
        control = self.folder("memory", container_id) / "memory.oom_control"
        return read_fields(control).get("oom_kill", 0)

    def binds(self, container_id: str) -> list[tuple[str, Path]]:
        return [(name, self.folder(name, container_id)) for name in self._controllers]
