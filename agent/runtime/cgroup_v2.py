"""cgroup version 2: one hierarchy for all controllers."""

import errno
import os
from pathlib import Path

from agent.kernel import bpf
from agent.runtime.cgroup_files import (
    CgroupStats,
    Hierarchy,
    missing_controllers,
    read_fields,
    read_number,
)
from agent.runtime.limits import Limits, Setting, version_2

_WANTED = ("cpu", "memory", "pids")

_DEVICES = (
    # null, zero, full, random, urandom, tty, console, ptmx, pts.
    *((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)),
    (136, None),
)


class Version2(Hierarchy):
    """The unified hierarchy mounted at /sys/fs/cgroup."""

    version = 2

    def __init__(self, root: Path, parent: str) -> None:
        self._root = root
        self._parent = parent.strip("/")

    def folder(self, controller: str, container_id: str) -> Path:
        return self._root / self._parent / container_id

    def folders(self, container_id: str) -> list[Path]:
        return [self.folder("", container_id)]

    def tracker(self, container_id: str) -> Path:
        return self.folder("", container_id)

    def prepare(self) -> None:
        """Make the parent, give it the controllers, and filter devices for all below it.

        Source: Linux admin-guide/cgroup-v2, "Enabling and Disabling" and "Device
        controller".
        """
        folder = self._root
        self._enable(folder)
        for name in self._parent.split("/"):
            folder /= name
            folder.mkdir(exist_ok=True)
            self._enable(folder)
        descriptor = os.open(folder, os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bpf.allow_devices(descriptor, _DEVICES)
        finally:
            os.close(descriptor)

    def _enable(self, folder: Path) -> None:
        present = (folder / "cgroup.controllers").read_text().split()
        names = [f"+{name}" for name in _WANTED if name in present]
        try:
            (folder / "cgroup.subtree_control").write_text(" ".join(names))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise OSError(
                errno.EBUSY,
                "has processes of its own, so it cannot limit those below it",
                str(folder),
            ) from error

    def settings(self, limits: Limits) -> list[Setting]:
        settings = version_2(limits)
        present = (self.folder("", "") / "cgroup.subtree_control").read_text().split()
        if not {setting.controller for setting in settings} <= set(present):
            raise missing_controllers(settings, present)
        return settings

    def freeze(self, folder: Path, *, frozen: bool) -> None:
        (folder / "cgroup.freeze").write_text("1" if frozen else "0")

    def stats(self, container_id: str) -> CgroupStats:
        folder = self.tracker(container_id)
        cpu = read_fields(folder / "cpu.stat")
        memory_bytes = pids = 0
        if (folder / "memory.current").exists():
            inactive = read_fields(folder / "memory.stat").get("inactive_file", 0)
            memory_bytes = max(0, read_number(folder / "memory.current") - inactive)
        if (folder / "pids.current").exists():
            pids = read_number(folder / "pids.current")
        return CgroupStats(
            cpu_ns=cpu.get("usage_usec", 0) * 1_000,
            throttled_ns=cpu.get("throttled_usec", 0) * 1_000,
            memory_bytes=memory_bytes,
            pids=pids,
            oom_kills=self.oom_kills(container_id),
        )

    def oom_kills(self, container_id: str) -> int:
        try:
            return read_fields(self.tracker(container_id) / "memory.events").get("oom_kill", 0)
        except FileNotFoundError:
            return 0

    def binds(self, container_id: str) -> list[tuple[str, Path]]:
        return [("", self.tracker(container_id))]
