"""Launcher, images and network with the faults that a test tells them to have."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import LaunchError
from agent.images import ImageConfig
from agent.tasks.ports import ContainerExit
from estiba.v1 import types_pb2 as v1


@dataclass(frozen=True)
class FakeExit:
    container_id: str
    exit_code: int | None = 0
    signal: int | None = None
    oom_killed: bool = False
    started_at: float = 0.0
    ended_at: float = 0.0


@dataclass
class FakeContainer:
    container_id: str
    pid: int
    state: str = "created"
    exit: FakeExit | None = None


@dataclass(frozen=True)
class FakeResult:
    exit_code: int
    output: bytes = b""
    timed_out: bool = False


class FakeLauncher:
    """Containers without processes. ``faults`` maps a call's name to what its next uses raise."""

    protocol = 1

    def __init__(self) -> None:
        self.containers: dict[str, FakeContainer] = {}
        self.calls: list[str] = []
        self.signals: list[tuple[str, int]] = []
        self.faults: dict[str, list[Exception]] = {}
        self.stubborn = False
        """Containers end by SIGKILL alone."""
        self.creating = asyncio.Event()
        self.creating.set()
        self.exec_results: list[FakeResult] = []
        self._callbacks: list[Callable[[ContainerExit], None]] = []
        self._pids = iter(range(1000, 100_000))

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    async def create(self, container_id: str, bundle: Path) -> int:
        self._called("create")
        await self.creating.wait()
        assert (bundle / "config.json").exists()
        assert container_id not in self.containers
        self.containers[container_id] = FakeContainer(container_id, next(self._pids))
        return self.containers[container_id].pid

    async def start(self, container_id: str) -> None:
        self._called("start")
        self.containers[container_id].state = "running"

    async def signal(self, container_id: str, signal: int) -> None:
        self._called("signal")
        if self.containers[container_id].state != "running":
            raise LaunchError("request", f"container {container_id} does not run")
        self.signals.append((container_id, signal))
        if not self.stubborn:
            self.end(container_id, signal=signal)

    async def kill(self, container_id: str) -> None:
        self._called("kill")
        self.signals.append((container_id, 9))
        self.end(container_id, signal=9)

    async def remove(self, container_id: str) -> None:
        self._called("remove")
        self.containers.pop(container_id, None)

    async def exec(self, container_id: str, argv: Sequence[str], *, timeout_s: float) -> FakeResult:
        self._called("exec")
        return self.exec_results.pop(0) if len(self.exec_results) > 1 else self.exec_results[0]

    async def list(self) -> Sequence[FakeContainer]:
        self._called("list")
        return list(self.containers.values())

    def on_exit(self, callback: Callable[[ContainerExit], None]) -> None:
        self._callbacks.append(callback)

    def end(
        self,
        container_id: str,
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        oom_killed: bool = False,
        ran_s: float = 0.0,
    ) -> None:
        """Let a container end, and tell it."""
        container = self.containers[container_id]
        container.state = "exited"
        container.exit = FakeExit(container_id, exit_code, signal, oom_killed, 0.0, ran_s)
        for callback in self._callbacks:
            callback(container.exit)


@dataclass(frozen=True)
class FakeImage:
    digest: str = "sha256:" + "1" * 64
    layers: tuple[Path, ...] = (Path("/layers/1"),)
    config: ImageConfig = field(default_factory=lambda: ImageConfig(command=("sleep", "1000")))


class FakeImages:
    def __init__(self) -> None:
        self.image = FakeImage()
        self.faults: list[Exception] = []
        self.asked: list[str] = []
        self.here = asyncio.Event()
        self.here.set()

    async def ensure(
        self, reference: str, *, progress: Callable[[str], None] | None = None
    ) -> FakeImage:
        self.asked.append(reference)
        if progress is not None and not self.here.is_set():
            progress(f"pulling {reference}: 1 of 2 layers")
        await self.here.wait()
        if self.faults:
            raise self.faults.pop(0)
        return self.image


class FakeNetwork:
    def __init__(self) -> None:
        self.connected: dict[str, str] = {}
        self.faults: list[Exception] = []
        self._hosts = iter(range(2, 250))

    async def connect(self, container_id: str, pid: int, attachment: v1.NetworkAttachment) -> str:
        if self.faults:
            raise self.faults.pop(0)
        self.connected[container_id] = f"10.10.1.{next(self._hosts)}"
        return self.connected[container_id]

    async def disconnect(self, container_id: str) -> None:
        self.connected.pop(container_id, None)

    async def adopt(self, container_ids: Collection[str]) -> None:
        self.connected = {
            name: address for name, address in self.connected.items() if name in container_ids
        }


@dataclass(frozen=True)
class FakeStats:
    cpu_ns: int = 0
    throttled_ns: int = 0
    memory_bytes: int = 0
    pids: int = 1
    oom_kills: int = 0


class FakeCgroups:
    version = 1

    def stats(self, container_id: str) -> FakeStats:
        return FakeStats()
