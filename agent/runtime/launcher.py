"""estiba-launcher: makes containers, watches them, and outlives the agent.

One thread and one loop. It forks, so it imports nothing heavy. Every request of the
agent is answered once; ends of containers are told to everybody who is connected.
"""

import argparse
import gc
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from agent.kernel import pidfd, prctl, signals
from agent.kernel.notify import notify
from agent.runtime.cgroups import Cgroups
from agent.runtime.container import Container, Reply, failure
from agent.runtime.containers import Containers
from agent.runtime.errors import ContainerError
from agent.runtime.executions import Executions
from agent.runtime.loop import Loop
from agent.runtime.messages import (
    HANDOVER_PATIENCE_S,
    PROTOCOL,
    Channel,
    Message,
    close_all,
    listen,
)
from agent.runtime.processes import lock_folder, raise_open_files, re_execute, say, stay_alive

PROGRAM = "estiba-launcher"

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_LIST_CHUNK = 100


class Launcher:
    """Answers agents, and tells them of ends."""

    def __init__(
        self, *, state: Path, socket_path: Path, pump_path: Path, cgroup_parent: str
    ) -> None:
        self._loop = Loop()
        self._socket_path = socket_path
        self._cgroups = Cgroups(cgroup_parent)
        self._clients: set[Channel] = set()
        open_files = raise_open_files()
        self._executions = Executions(self._loop, self._cgroups, open_files)
        self._containers = Containers(
            self._loop,
            state=state,
            cgroups=self._cgroups,
            pump_path=pump_path,
            open_files=open_files,
            ended=self._tell_end,
        )
        self._handlers: dict[str, Callable[[Message, Reply], None]] = {
            "hello": self._hello,
            "create": self._create,
            "start": self._start,
            "signal": self._signal,
            "kill": self._kill,
            "exec": self._exec,
            "remove": self._remove,
            "list": self._list,
            "pump": self._pump_is_up,
        }

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; containers go on either way."""
        stop = signals.signal_descriptor((signal.SIGTERM, signal.SIGINT))
        self._loop.watch(stop, lambda: self._stop(stop))
        self._cgroups.prepare()
        self._containers.adopt()
        self._containers.pump.connect()
        listener = listen(self._socket_path)
        self._loop.watch(listener.fileno(), lambda: self._accept(listener))
        gc.collect()
        gc.freeze()
        say(f"ready with {len(self._containers)} containers, cgroup v{self._cgroups.version}")
        notify("READY=1", f"STATUS=serves at {self._socket_path}")
        stay_alive(self._loop)
        self._loop.run()
        notify("STOPPING=1")
        self._socket_path.unlink(missing_ok=True)
        self._cgroups.retire()

    def _stop(self, signalled: int) -> None:
        """Stop once the pump has all output: one that has just started may not have got it."""
        self._loop.forget(signalled)
        pump = self._containers.pump
        self._loop.when(lambda: pump.has_all, self._loop.stop, patience_s=HANDOVER_PATIENCE_S)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionError):
            link, _ = listener.accept()
            link.setblocking(False)
            channel = Channel(
                self._loop, link, received=self._receive, closed=self._clients.discard
            )
            self._clients.add(channel)

    def _receive(self, channel: Channel, message: Message, descriptors: list[int]) -> None:
        close_all(descriptors)

        def reply(answer: Message) -> None:
            channel.send({"id": message.get("id"), **answer})

        handler = self._handlers.get(str(message.get("op")), self._unknown)
        try:
            handler(message, reply)
        except ContainerError as fault:
            reply(failure(fault))

    def _tell_end(self, container: Container) -> None:
        for client in list(self._clients):
            client.send({"event": "exit", "container": container.describe()})

    # ---------------------------------------------------------------- requests

    def _unknown(self, message: Message, reply: Reply) -> None:
        raise ContainerError("request", f"unknown operation {message.get('op')!r}")

    def _hello(self, message: Message, reply: Reply) -> None:
        theirs = message.get("protocol")
        if theirs != PROTOCOL:
            raise ContainerError("request", f"protocol {theirs} is not the launcher's, {PROTOCOL}")
        reply({"protocol": PROTOCOL, "pid": os.getpid()})

    def _create(self, message: Message, reply: Reply) -> None:
        self._containers.create(_container_id(message), Path(_text(message, "bundle")), reply)

    def _start(self, message: Message, reply: Reply) -> None:
        self._containers.start(_container_id(message), reply)

    def _signal(self, message: Message, reply: Reply) -> None:
        container = self._containers.running(_container_id(message))
        number = message.get("signal")
        if number not in signal.valid_signals():
            raise ContainerError("request", f"{number!r} is no signal")
        try:
            pidfd.send_signal(container.pidfd, number)
        except ProcessLookupError as error:
            raise ContainerError("request", f"container {container.id} has ended") from error
        reply({})

    def _kill(self, message: Message, reply: Reply) -> None:
        self._containers.kill(self._containers.known(_container_id(message)))
        reply({})

    def _exec(self, message: Message, reply: Reply) -> None:
        container = self._containers.running(_container_id(message))
        argv, timeout_s = message.get("argv"), message.get("timeout_s")
        if not isinstance(argv, list) or not argv or not all(isinstance(w, str) for w in argv):
            raise ContainerError("request", "there is no command to run")
        if not isinstance(timeout_s, (int, float)) or timeout_s <= 0:
            raise ContainerError("request", f"{timeout_s!r} is no timeout")
        self._executions.run(container, argv, timeout_s=timeout_s, reply=reply)

    def _remove(self, message: Message, reply: Reply) -> None:
        self._containers.remove(_container_id(message), reply)

    def _list(self, message: Message, reply: Reply) -> None:
        described = [container.describe() for container in self._containers]
        for start in range(0, len(described), _LIST_CHUNK):
            reply({"containers": described[start : start + _LIST_CHUNK], "more": True})
        reply({"containers": [], "more": False})

    def _pump_is_up(self, message: Message, reply: Reply) -> None:
        self._containers.pump.connect()
        reply({})


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise ContainerError("request", f"{name} {value!r} is no text")
    return value


def _container_id(message: Message) -> str:
    container_id = _text(message, "container_id")
    if not _CONTAINER_ID.fullmatch(container_id):
        raise ContainerError("request", f"{container_id!r} is no container id")
    return container_id


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Start and watch containers.")
    parser.add_argument("--state", type=Path, required=True, help="folder for its records")
    parser.add_argument("--socket", type=Path, required=True, help="where agents connect")
    parser.add_argument("--log-pump-socket", type=Path, required=True, help="where the pump is")
    parser.add_argument("--cgroup-parent", required=True, help="such as /estiba")
    return parser.parse_args(arguments)


def main() -> int:
    """Run in the small process that `start` makes."""
    options = parse_arguments(sys.argv[1:])
    prctl.set_name(PROGRAM)
    try:
        lock_folder(options.state)
    except BlockingIOError:
        say(f"another launcher works in {options.state}")
        return 1
    launcher = Launcher(
        state=options.state,
        socket_path=options.socket,
        pump_path=options.log_pump_socket,
        cgroup_parent=options.cgroup_parent,
    )
    launcher.run()
    return 0


def start() -> None:
    """Entry point of the command `estiba-launcher`."""
    parse_arguments(sys.argv[1:])
    re_execute("agent.runtime.launcher", sys.argv[1:])
