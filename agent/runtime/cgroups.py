"""A container's cgroup, version 1 or 2, behind one interface.

Each container has the cgroup PARENT/CONTAINER_ID (under v1 one for each controller).
The launcher makes and removes them; the sandbox enters them; anybody may read them.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from agent.runtime.cgroup_files import CgroupStats, Hierarchy, read_processes
from agent.runtime.cgroup_v1 import Version1
from agent.runtime.cgroup_v2 import Version2
from agent.runtime.errors import ContainerError
from agent.runtime.limits import Limits

__all__ = ["ROOT", "CgroupStats", "Cgroups"]

ROOT = Path("/sys/fs/cgroup")


class Cgroups:
    """The cgroups of all containers below one parent such as ``/estiba/n1``."""

    def __init__(self, parent: str, *, root: Path = ROOT) -> None:
        self._files: Hierarchy
        if (root / "cgroup.controllers").exists():
            self._files = Version2(root, parent)
        else:
            self._files = Version1(root, parent)
        self.version = self._files.version

    def prepare(self) -> None:
        """Make the parent cgroup; safe to repeat while containers run."""
        self._files.prepare()

    def retire(self) -> None:
        """Remove the parent cgroup if nothing is left in it."""
        for folder in self._files.folders(""):
            with suppress(OSError):
                folder.rmdir()

    def create(self, container_id: str, limits: Limits) -> None:
        """Make a container's cgroup with its limits, or nothing at all.

        Raises:
            ContainerError: a limit is refused, or the cgroup cannot be made.
        """
        settings = self._files.settings(limits)
        try:
            for folder in self._files.folders(container_id):
                folder.mkdir()
        except OSError as error:
            self.remove(container_id)
            raise ContainerError("cgroup", f"{error.filename}: {error.strerror}") from error
        for setting in settings:
            path = self._files.folder(setting.controller, container_id) / setting.file
            if setting.optional and not path.exists():
                continue
            try:
                path.write_text(setting.value)
            except OSError as error:
                self.remove(container_id)
                raise ContainerError(
                    "limits", f"{setting.file} {setting.value}: {error.strerror}"
                ) from error

    def entrances(self, container_id: str) -> list[Path]:
        """Return the files into which a process writes 0 to enter the container's cgroup."""
        return [folder / "cgroup.procs" for folder in self._files.folders(container_id)]

    def create_inner(self, container_id: str, name: str) -> list[Path]:
        """Make a cgroup within the container's that can be killed by itself.

        Returns:
            The files into which a process writes 0 to enter both.
        """
        tracker = self._files.tracker(container_id)
        (tracker / name).mkdir()
        others = [each for each in self._files.folders(container_id) if each != tracker]
        return [folder / "cgroup.procs" for folder in [*others, tracker / name]]

    def kill_inner(self, container_id: str, name: str) -> bool:
        """Kill what is in an inner cgroup and remove it; False while something is left."""
        folder = self._files.tracker(container_id) / name
        try:
            _kill_all(self._files, folder)
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
        return True

    def kill_inner_ones(self, container_id: str) -> None:
        """Kill what is in all inner cgroups of a container; they go when the container goes."""
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._files.tracker(container_id)):
                if entry.is_dir():
                    self.kill_inner(container_id, entry.name)

    def thaw(self, container_id: str) -> None:
        """Let frozen processes go on: a frozen process does not die of SIGKILL."""
        with suppress(FileNotFoundError):
            self._files.freeze(self._files.tracker(container_id), frozen=False)

    def kill_all(self, container_id: str) -> None:
        """Kill every process in the container's cgroup, whichever namespace it is in."""
        with suppress(FileNotFoundError):
            _kill_all(self._files, self._files.tracker(container_id))

    def pids(self, container_id: str) -> list[int]:
        """Return the processes of a container, as the node numbers them.

        Raises:
            FileNotFoundError: there is no such container.
        """
        return _processes_below(self._files.tracker(container_id))

    def stats(self, container_id: str) -> CgroupStats:
        """Return what a container uses.

        Raises:
            FileNotFoundError: there is no such container.
        """
        try:
            return self._files.stats(container_id)
        except OSError as error:
            # A file that was opened before the cgroup went answers ENODEV.
            if error.errno == errno.ENODEV:
                raise FileNotFoundError(errno.ENOENT, "no such cgroup", container_id) from error
            raise

    def oom_kills(self, container_id: str) -> int:
        """Return how many processes the kernel has killed for memory; 0 if it cannot tell."""
        try:
            return self._files.oom_kills(container_id)
        except FileNotFoundError:
            return 0

    def names(self) -> set[str]:
        """Return the ids of all containers that have a cgroup in any hierarchy."""
        found = set()
        for parent in self._files.folders(""):
            with suppress(FileNotFoundError):
                found |= {entry.name for entry in os.scandir(parent) if entry.is_dir()}
        return found

    def remove(self, container_id: str) -> bool:
        """Remove a container's cgroup; False while processes are left in it."""
        # Each is tried, whatever became of the one before.
        left = [not _remove_tree(folder) for folder in self._files.folders(container_id)]
        return not any(left)

    def binds(self, container_id: str) -> list[tuple[str, Path]]:
        """Return what the container sees below /sys/fs/cgroup: (name, folder of the node)."""
        return self._files.binds(container_id)


def _processes_below(folder: Path) -> list[int]:
    found = read_processes(folder)
    for entry in os.scandir(folder):
        if entry.is_dir():
            with suppress(FileNotFoundError):
                found += _processes_below(Path(entry.path))
    return found


def _kill_all(files: Hierarchy, folder: Path) -> None:
    """Kill all processes below a cgroup; frozen meanwhile, so that none can fork away."""
    kill_file = folder / "cgroup.kill"
    if kill_file.exists():
        kill_file.write_text("1")
        return
    files.freeze(folder, frozen=True)
    try:
        for pid in _processes_below(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
    finally:
        files.freeze(folder, frozen=False)


def _remove_tree(folder: Path) -> bool:
    try:
        for entry in os.scandir(folder):
            if entry.is_dir():
                _remove_tree(Path(entry.path))
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True
