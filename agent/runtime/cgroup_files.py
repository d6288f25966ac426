"""What both cgroup versions share: what they have to offer, and how their files are read."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.runtime.errors import ContainerError
from agent.runtime.limits import Limits, Setting


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """What a container has used since its start, or uses now.

    Attributes:
        cpu_ns: processor time.
        throttled_ns: time in which it was ready to run and its limit forbade it.
        memory_bytes: the working set: what is in use, without file pages that the
            kernel could drop at once.
        pids: processes and threads now.
        oom_kills: how many of its processes the kernel has killed for memory.
    """

    cpu_ns: int
    throttled_ns: int
    memory_bytes: int
    pids: int
    oom_kills: int


class Hierarchy(ABC):
    """The files of one cgroup version below one parent."""

    version: int

    @abstractmethod
    def folders(self, container_id: str) -> list[Path]:
        """Return the container's cgroup in every hierarchy."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the parent, with the rules about devices that its children inherit."""

    @abstractmethod
    def settings(self, limits: Limits) -> list[Setting]:
        """Render limits; raise ContainerError if a controller is not there."""

    @abstractmethod
    def folder(self, controller: str, container_id: str) -> Path:
        """Return where a controller's files of a container are."""

    @abstractmethod
    def tracker(self, container_id: str) -> Path:
        """Return the cgroup that tells, and can kill, the processes of a container."""

    @abstractmethod
    def freeze(self, folder: Path, *, frozen: bool) -> None:
        """Stop all processes of a cgroup, or let them go on."""

    @abstractmethod
    def stats(self, container_id: str) -> CgroupStats: ...

    @abstractmethod
    def oom_kills(self, container_id: str) -> int: ...

    @abstractmethod
    def binds(self, container_id: str) -> list[tuple[str, Path]]:
        """Return what to show below /sys/fs/cgroup in the container: (name, folder)."""


def read_number(path: Path) -> int:
    return int(path.read_text())


def read_fields(path: Path) -> dict[str, int]:
    """Read a file of lines ``NAME NUMBER``."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}


def read_processes(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "cgroup.procs").read_text().split()]


def missing_controllers(settings: Iterable[Setting], present: Iterable[str]) -> ContainerError:
    """Return the error that names the first controller a limit needs and the node lacks."""
    available = set(present)
    lacking = next(each.controller for each in settings if each.controller not in available)
    return ContainerError("limits", f"this node has no {lacking} cgroup controller")
