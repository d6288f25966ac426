"""The agent's side of the launcher: ask it, and hear how containers ended.

Holds one connection and makes it again when it breaks. What was asked when it broke has
an unknown outcome, which the caller reads from `list`, or undoes with `remove`.
"""

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import LauncherLostError, LaunchError
from agent.runtime.messages import MAX_MESSAGE_BYTES, PROTOCOL, Message, connect, decode, encode

log = logging.getLogger(__name__)

RECONNECT_S = 0.1


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command in a container ended, and the first 4 KiB of what it printed."""

    exit_code: int
    output: bytes
    timed_out: bool


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended. An exit code of None is out of reach; 128 + N is signal N."""

    container_id: str
    exit_code: int | None
    signal: int | None
    oom_killed: bool
    started_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """A container as the launcher knows it; ``state`` is created, running or exited."""

    container_id: str
    pid: int
    state: str
    started_at: float
    exit: ContainerExit | None


class Launcher:
    """`run` keeps the connection; every other call may raise LaunchError or LauncherLostError."""

    def __init__(self, path: Path, *, patience_s: float = 5.0) -> None:
        """
        Args:
            patience_s: how long a call waits for a launcher that is away.
        """
        self._path = path
        self._patience_s = patience_s
        self._link: socket.socket | None = None
        self._connected = asyncio.Event()
        self._broken = asyncio.Event()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._listed: dict[int, list[Message]] = {}
        self._callbacks: list[Callable[[ContainerExit], None]] = []
        self._told: set[str] = set()
        self._protocol = 0

    @property
    def protocol(self) -> int:
        """Return the version the launcher speaks, 0 before the first connection."""
        return self._protocol

    def on_exit(self, callback: Callable[[ContainerExit], None]) -> None:
        """Call back once for every container that ends, also for ends missed while away."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Connect, and again whenever the connection breaks, until cancelled."""
        try:
            while True:
                try:
                    await self._serve()
                except OSError:
                    await asyncio.sleep(RECONNECT_S)
                except LaunchError as fault:
                    log.warning("the launcher refuses us: %s", fault)
                    await asyncio.sleep(RECONNECT_S * 10)
                except LauncherLostError as lost:
                    log.info("connecting to the launcher again: %s", lost)
        finally:
            self._disconnect()

    async def create(self, container_id: str, bundle: Path) -> int:
        """Make a container that waits to be started; return the pid of its first process."""
        answer = await self._ask("create", container_id=container_id, bundle=str(bundle))
        return int(answer["pid"])

    async def start(self, container_id: str) -> None:
        """Let it execute its command; returns when it does."""
        await self._ask("start", container_id=container_id)

    async def signal(self, container_id: str, signal: int) -> None:
        """Send a signal to its first process."""
        await self._ask("signal", container_id=container_id, signal=int(signal))

    async def kill(self, container_id: str) -> None:
        """Kill all its processes; safe to repeat."""
        await self._ask_again("kill", container_id=container_id)

    async def remove(self, container_id: str) -> None:
        """Leave nothing of it but its bundle's files and its logs; safe to repeat."""
        await self._ask_again("remove", container_id=container_id)
        self._told.discard(container_id)

    async def exec(self, container_id: str, argv: Sequence[str], *, timeout_s: float) -> ExecResult:
        """Run a command in it, killed with all it started after ``timeout_s``."""
        answer = await self._ask(
            "exec", container_id=container_id, argv=list(argv), timeout_s=timeout_s
        )
        return ExecResult(
            exit_code=answer["exit_code"],
            output=answer["output"].encode(),
            timed_out=answer["timed_out"],
        )

    async def list(self) -> list[ContainerInfo]:
        """Return all containers that the launcher knows."""
        answer = await self._ask_again("list")
        return [_info(described) for described in answer["containers"]]

    # ---------------------------------------------------------------- connection

    async def _serve(self) -> None:
        link = connect(self._path)
        loop = asyncio.get_running_loop()
        self._link = link
        self._broken.clear()
        loop.add_reader(link.fileno(), self._readable, link)
        try:
            answer = await self._send("hello", protocol=PROTOCOL)
            self._protocol = int(answer["protocol"])
            self._connected.set()
            await self._tell_missed()
            await self._broken.wait()
        finally:
            self._disconnect()

    async def _tell_missed(self) -> None:
        answer = await self._send("list")
        for described in answer["containers"]:
            info = _info(described)
            if info.exit:
                self._tell(info.exit)

    def _disconnect(self) -> None:
        self._connected.clear()
        self._broken.set()
        link, self._link = self._link, None
        if link is not None:
            asyncio.get_running_loop().remove_reader(link.fileno())
            link.close()
        self._listed.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(LauncherLostError("the launcher went away before it answered"))

    def _readable(self, link: socket.socket) -> None:
        while self._link is link:
            try:
                data = link.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._disconnect()
                return
            self._receive(decode(data))

    def _receive(self, message: Message) -> None:
        if message.get("event") == "exit":
            ended = _info(message["container"]).exit
            if ended:
                self._tell(ended)
            return
        number = message["id"]
        if "containers" in message:
            listed = self._listed.setdefault(number, [])
            listed += message["containers"]
            if message["more"]:
                return
            message["containers"] = self._listed.pop(number)
        future = self._waiting.pop(number, None)
        if future is None or future.done():
            return
        if "error" in message:
            error = message["error"]
            future.set_exception(LaunchError(error["stage"], error["message"]))
        else:
            future.set_result(message)

    def _tell(self, ended: ContainerExit) -> None:
        if ended.container_id not in self._told:
            self._told.add(ended.container_id)
            for callback in self._callbacks:
                callback(ended)

    # ---------------------------------------------------------------- asking

    async def _ask_again(self, operation: str, **arguments: Any) -> Message:
        """Ask what may be asked twice, of the next launcher if this one goes away meanwhile."""
        try:
            return await self._ask(operation, **arguments)
        except LauncherLostError:
            return await self._ask(operation, **arguments)

    async def _ask(self, operation: str, **arguments: Any) -> Message:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._connected.wait()
        except TimeoutError as error:
            raise LauncherLostError(f"no launcher answers at {self._path}") from error
        return await self._send(operation, **arguments)

    async def _send(self, operation: str, **arguments: Any) -> Message:
        if self._link is None:
            raise LauncherLostError(f"no launcher answers at {self._path}")
        number = next(self._numbers)
        data = encode({"id": number, "op": operation, **arguments})
        if len(data) > MAX_MESSAGE_BYTES:
            raise LaunchError("request", f"{operation} takes {len(data)} bytes, which is too much")
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._transmit(self._link, data)
            return await future
        finally:
            self._waiting.pop(number, None)

    async def _transmit(self, link: socket.socket, data: bytes) -> None:
        while self._link is link:
            try:
                link.send(data)
            except BlockingIOError:
                # The launcher is busy; its side of the socket holds hundreds of messages.
                await asyncio.sleep(0.001)
            except OSError:
                self._disconnect()
            else:
                return


def _info(described: Message) -> ContainerInfo:
    ended = described["exit"]
    return ContainerInfo(
        container_id=described["container_id"],
        pid=described["pid"],
        state=described["state"],
        started_at=described["started_at"],
        exit=ended
        and ContainerExit(
            container_id=described["container_id"],
            exit_code=ended["code"],
            signal=ended["signal"],
            oom_killed=ended["oom_killed"],
            started_at=described["started_at"],
            ended_at=ended["ended_at"],
        ),
    )
