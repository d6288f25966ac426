"""estiba-log-pump: writes what containers print into their log files.

Apart from the launcher, so that a flood of output delays no start, and the death of one
is nobody's SIGPIPE. It knows only what the launcher hands it, and hands it back to the
next one: pipes, and pidfds, which tell how a container ended after everybody forgot.
"""

import argparse
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.kernel import prctl, signals
from agent.kernel.notify import notify
from agent.runtime.logfile import LogFile
from agent.runtime.loop import Loop
from agent.runtime.messages import (
    HANDOVER_PATIENCE_S,
    Channel,
    Message,
    close_all,
    connect,
    encode,
    listen,
)
from agent.runtime.output import OutputPipes
from agent.runtime.processes import raise_open_files, re_execute, say, stay_alive
from agent.runtime.pumping import Pumping, Scratch
from agent.runtime.spec import LogSettings

PROGRAM = "estiba-log-pump"


@dataclass(slots=True)
class _Held:
    log: LogSettings
    pidfd: int
    # None once everything is written.
    output: OutputPipes | None
    # The launcher has recorded the container's end.
    ended: bool


class LogPump:
    def __init__(self, *, socket_path: Path, launcher_path: Path) -> None:
        self._loop = Loop()
        self._socket_path = socket_path
        self._launcher_path = launcher_path
        self._scratch = Scratch()
        self._held: dict[str, _Held] = {}
        self._launcher: Channel | None = None
        # Whether this launcher has been told all that is held here.
        self._told = False

    def run(self) -> None:
        """Pump until SIGTERM or SIGINT; what is not yet written, the next pump writes."""
        stop = signals.signal_descriptor((signal.SIGTERM, signal.SIGINT))
        self._loop.watch(stop, lambda: self._stop(stop))
        listener = listen(self._socket_path)
        self._loop.watch(listener.fileno(), lambda: self._accept(listener))
        self._call_launcher()
        gc.collect()
        gc.freeze()
        say("ready")
        notify("READY=1", f"STATUS=serves at {self._socket_path}")
        stay_alive(self._loop)
        self._loop.run()
        notify("STOPPING=1")
        self._socket_path.unlink(missing_ok=True)

    def _stop(self, signalled: int) -> None:
        """Stop once a launcher has all output: one that has just started may not have got it."""
        self._loop.forget(signalled)
        self._loop.when(self._launcher_has_all, self._loop.stop, patience_s=HANDOVER_PATIENCE_S)

    def _launcher_has_all(self) -> bool:
        if all(held.output is None for held in self._held.values()):
            return True
        return self._told and self._launcher is not None and self._launcher.flushed

    def _call_launcher(self) -> None:
        """Tell a launcher that we are here; if there is none, it will look by itself."""
        with suppress(OSError):
            link = connect(self._launcher_path)
            link.send(encode({"id": 0, "op": "pump"}))
            link.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionError):
            link, _ = listener.accept()
            link.setblocking(False)
            if self._launcher is not None:
                # The one before is dead, or will be: there is one launcher at a time.
                self._launcher.close()
            self._told = False
            self._launcher = Channel(self._loop, link, received=self._receive, closed=self._lost)

    def _lost(self, channel: Channel) -> None:
        if self._launcher is channel:
            self._launcher = None

    def _receive(self, channel: Channel, message: Message, descriptors: list[int]) -> None:
        match message.get("op"):
            case "hello":
                self._tell_all(channel)
                self._told = True
            case "hold" if len(descriptors) == 1 + len(OutputPipes.__slots__):
                self._hold(message, descriptors)
                return
            case "forget":
                self._forget(str(message["name"]))
            case unknown:
                say(f"the launcher sent {unknown!r}, which is not understood")
        close_all(descriptors)

    def _tell_all(self, channel: Channel) -> None:
        for name, held in self._held.items():
            pipes = held.output.descriptors() if held.output else []
            channel.send(
                {"op": "held", "name": name, "log": asdict(held.log)}, [held.pidfd, *pipes]
            )
        channel.send({"op": "all-held"})

    def _hold(self, message: Message, descriptors: Sequence[int]) -> None:
        name = str(message["name"])
        if name in self._held:
            close_all(descriptors)
            return
        log = LogSettings(**message["log"])
        pidfd, *rest = descriptors
        output = OutputPipes(*rest)
        self._held[name] = _Held(log, pidfd, output, ended=bool(message["ended"]))
        Pumping(self._loop, self._scratch, output, LogFile(log), lambda: self._dry(name)).begin()

    def _dry(self, name: str) -> None:
        held = self._held[name]
        held.output = None
        if self._launcher is not None:
            self._launcher.send({"op": "dry", "name": name})
        self._drop_if_done(name)

    def _forget(self, name: str) -> None:
        if name in self._held:
            self._held[name].ended = True
            self._drop_if_done(name)

    def _drop_if_done(self, name: str) -> None:
        held = self._held[name]
        if held.ended and held.output is None:
            del self._held[name]
            os.close(held.pidfd)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Write containers' logs.")
    parser.add_argument("--socket", type=Path, required=True, help="where the launcher connects")
    parser.add_argument("--launcher-socket", type=Path, required=True, help="where the launcher is")
    return parser.parse_args(arguments)


def main() -> int:
    """Run in the small process that `start` makes."""
    options = parse_arguments(sys.argv[1:])
    prctl.set_name(PROGRAM)
    raise_open_files()
    LogPump(socket_path=options.socket, launcher_path=options.launcher_socket).run()
    return 0


def start() -> None:
    """Entry point of the command `estiba-log-pump`."""
    parse_arguments(sys.argv[1:])
    re_execute("agent.runtime.logpump", sys.argv[1:])
