"""A launcher and a log pump of a test's own, and an image made from busybox-static."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from agent.launcher import ContainerExit, Launcher
from agent.runtime.cgroups import Cgroups
from agent.runtime.limits import NO_LIMITS, Limits
from agent.runtime.spec import Bind, ContainerSettings, LogSettings, build_spec
from tests.support.cgroups import folders_of
from tests.support.waiting import stretched

BIN = Path(sys.executable).parent
BUSYBOX = Path("/bin/busybox")
APPLETS = (
    *("cat", "chown", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip", "ln"),
    *(
        "ls",
        "mkdir",
        "mknod",
        "mount",
        "nc",
        "printf",
        "ps",
        "pwd",
        "rm",
        "seq",
        "setsid",
        "sh",
        "sleep",
    ),
    *("stat", "tail", "touch", "tr", "true", "umount", "wc", "yes"),
)
ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\nana:x:1000:1000:Ana:/home/ana:/bin/sh\n"
GROUPS = "root:x:0:\nana:x:1000:\ncrew:x:2000:ana\n"

PATIENCE_S = stretched(20.0)


def make_layer(folder: Path) -> Path:
    """Make an image's only layer: busybox, two users, nothing else."""
    for name in ("bin", "etc", "root", "home/ana", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "tmp").chmod(0o1777)
    (folder / "etc/passwd").write_text(ACCOUNTS)
    (folder / "etc/group").write_text(GROUPS)
    return folder


class Node:
    """One launcher and one log pump in a folder, and an agent's connection to them."""

    def __init__(self, folder: Path, layer: Path) -> None:
        self.folder = folder
        self.layer = layer
        self.cgroup_parent = f"/estiba-test-{uuid.uuid4().hex[:12]}"
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self.connect_anew()

    def connect_anew(self) -> None:
        """Forget what was heard; be another agent of the same programs."""
        self.touched = False
        """Whether a test has asked for more than containers: it may have done anything to them."""
        self.launcher = Launcher(self.folder / "launcher.sock", patience_s=PATIENCE_S)
        self.environment: dict[str, str] = {}
        """What the programs find in theirs, besides ours."""
        self.ends: dict[str, ContainerExit] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self.launcher.on_exit(self._hear)

    @property
    def cgroups(self) -> Cgroups:
        return Cgroups(self.cgroup_parent)

    # ---------------------------------------------------------------- programs

    def start_launcher(self) -> None:
        self._start(
            "launcher",
            *("estiba-launcher", "--state", "state", "--socket", "launcher.sock"),
            *("--log-pump-socket", "pump.sock", "--cgroup-parent", self.cgroup_parent),
        )

    def start_pump(self) -> None:
        self._start(
            "pump",
            *("estiba-log-pump", "--socket", "pump.sock", "--launcher-socket", "launcher.sock"),
        )

    def _start(self, name: str, program: str, *arguments: str) -> None:
        self._programs[name] = subprocess.Popen(
            [BIN / program, *arguments], cwd=self.folder, env=os.environ | self.environment
        )

    def pid(self, name: str) -> int:
        self.touched = True
        return self._programs[name].pid

    def kill(self, name: str) -> None:
        """Send SIGKILL to the launcher or the pump, and wait until it is gone."""
        self.touched = True
        program = self._programs.pop(name)
        program.kill()
        program.wait(PATIENCE_S)

    def stop(self, name: str) -> int:
        """Stop the launcher or the pump as a service manager does; return its exit code."""
        self.tell_to_stop(name)
        return self.wait_for_end(name)

    def tell_to_stop(self, name: str) -> None:
        self.touched = True
        self._programs[name].terminate()

    def wait_for_end(self, name: str) -> int:
        """Wait for one that was told to stop; return its exit code."""
        return self._programs.pop(name).wait(PATIENCE_S)

    def is_as_new(self) -> bool:
        """Say whether nothing is left of the containers it had, and no test has touched it."""
        return (
            not self.touched
            and all(program.poll() is None for program in self._programs.values())
            and [path.name for path in (self.folder / "state").iterdir()] == ["lock"]
            and cgroup_folders(self.cgroup_parent) == []
            and not any(journals(program.pid) for program in self._programs.values())
        )

    def stop_all(self) -> None:
        for name in list(self._programs):
            self.stop(name)

    # ---------------------------------------------------------------- containers

    def bundle(
        self,
        container_id: str,
        *args: str,
        user: str = "",
        cwd: str = "/",
        env: Sequence[str] = (),
        limits: Limits = NO_LIMITS,
        layers: Sequence[Path] = (),
        binds: Sequence[Bind] = (),
        max_size_bytes: int = 1 << 20,
        max_files: int = 3,
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> Path:
        """Write a container's config.json; ``change`` may alter it first."""
        folder = self.folder / "containers" / container_id
        folder.mkdir(parents=True)
        self.log(container_id).parent.mkdir(exist_ok=True)
        settings = ContainerSettings(
            args=args,
            env=tuple(env),
            cwd=cwd,
            user=user,
            hostname=f"{container_id}-host",
            layers=tuple(str(layer) for layer in (layers or (self.layer,))),
            log=LogSettings(str(self.log(container_id)), max_size_bytes, max_files),
            limits=limits,
            binds=tuple(binds),
        )
        spec = build_spec(settings)
        if change:
            change(spec)
        (folder / "config.json").write_text(json.dumps(spec))
        return folder

    async def run(self, container_id: str, *args: str, **settings: Any) -> int:
        """Create and start a container; return its pid."""
        pid = await self.launcher.create(container_id, self.bundle(container_id, *args, **settings))
        await self.launcher.start(container_id)
        return pid

    async def end(self, container_id: str) -> ContainerExit:
        """Wait until a container has ended."""
        async with asyncio.timeout(PATIENCE_S):
            await self._ended.setdefault(container_id, asyncio.Event()).wait()
        return self.ends[container_id]

    async def output(self, container_id: str, *args: str, **settings: Any) -> str:
        """Run a container to its end; return what it printed."""
        await self.run(container_id, *args, **settings)
        await self.end(container_id)
        await self.launcher.remove(container_id)
        return "".join(self.lines(container_id))

    def forget_bundles(self) -> None:
        """Let the next test give its containers the same names."""
        for name in ("containers", "logs"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def log(self, container_id: str) -> Path:
        return self.folder / "logs" / f"{container_id}.log"

    def lines(self, container_id: str, stream: str = "stdout") -> list[str]:
        """Return the lines in all log files of a container, oldest first."""
        text = ""
        for entry in self.entries(container_id):
            _, of, tag, rest = entry.split(" ", 3)
            if of == stream:
                text += rest + ("\n" if tag == "F" else "")
        return text.splitlines(keepends=True)

    def entries(self, container_id: str) -> list[str]:
        newest = self.log(container_id)
        older = sorted(newest.parent.glob(f"{newest.name}.*"), key=_age, reverse=True)
        files = [path for path in (*older, newest) if path.exists()]
        return [line for path in files for line in path.read_text().splitlines()]

    async def until(self, look: Callable[[], bool], what: str) -> None:
        """Wait for what no event tells."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while not look():
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not within {PATIENCE_S} s: {what}")
            await asyncio.sleep(0.01)

    async def sweep(self) -> None:
        """Remove what a launcher that has failed its test could not."""
        cgroups = self.cgroups
        for name in cgroups.names():
            cgroups.kill_all(name)
            await self.until(lambda name=name: cgroups.remove(name), "its cgroup is empty")  # type: ignore[misc]
        cgroups.retire()

    def _hear(self, ended: ContainerExit) -> None:
        self.ends[ended.container_id] = ended
        self._ended.setdefault(ended.container_id, asyncio.Event()).set()


def _age(path: Path) -> int:
    return int(path.suffix.removeprefix("."))


def journals(pid: int) -> int:
    """Return how many containers' journals a launcher or a pump holds."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += "estiba-journal" in str(descriptor.readlink())
    return found


@asynccontextmanager
async def running_node(folder: Path, layer: Path) -> AsyncIterator[Node]:
    """Start a launcher and a pump, connect; afterwards remove all containers and stop both."""
    node = Node(folder, layer)
    node.start_pump()
    node.start_launcher()
    try:
        async with connected(node):
            yield node
    finally:
        node.stop_all()
        await node.sweep()


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[None]:
    """Be the agent of a node whose programs start; afterwards remove all containers."""
    async with asyncio.TaskGroup() as group:
        connection = group.create_task(node.launcher.run(), name="launcher")
        try:
            await node.launcher.list()
            await node.until((node.folder / "pump.sock").exists, "the pump listens")
            yield
        finally:
            for container in await node.launcher.list():
                await node.launcher.remove(container.container_id)
            connection.cancel()


class StandingNode:
    """A node whose programs serve one test after another, until one does more to them."""

    def __init__(self, make_folder: Callable[[], Path], layer: Path) -> None:
        self._make_folder = make_folder
        self._layer = layer
        self._node: Node | None = None

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Node]:
        """Have it for one test, which finds it as new."""
        if self._node is None:
            self._node = Node(self._make_folder(), self._layer)
            self._node.start_pump()
            # One after the other: what a test counts of them does not change meanwhile.
            await self._node.until((self._node.folder / "pump.sock").exists, "the pump listens")
            self._node.start_launcher()
        node = self._node
        node.connect_anew()
        try:
            async with connected(node):
                yield node
            if not node.touched:
                await node.until(node.is_as_new, "nothing of its containers is left")
        except BaseException:
            node.touched = True
            raise
        finally:
            if node.touched:
                self._node = None
                node.stop_all()
                await node.sweep()
            else:
                node.forget_bundles()

    def stop(self) -> None:
        if self._node:
            self._node.stop_all()
            self._node.cgroups.retire()


def read(pid: int | str, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def status(pid: int, field: str) -> str:
    """Return one field of /proc/PID/status."""
    for line in read(pid, "status").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise KeyError(field)


def catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal: the first of a container needs one.

    Source: proc_pid_status(5), SigCgt.
    """
    return bool(int(status(pid, "SigCgt"), 16) >> (number - 1) & 1)


def alive(pid: int) -> bool:
    try:
        return status(pid, "State")[0] != "Z"
    except FileNotFoundError:
        return False


def namespace(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def cgroup_folders(parent: str) -> list[Path]:
    """Return all cgroups below a parent, in every hierarchy; one may go while we look."""
    roots = folders_of(parent)
    # Path.rglob raises when a folder vanishes under it; os.walk passes on.
    return [Path(folder) for root in roots for folder, _, _ in os.walk(root) if folder != str(root)]
