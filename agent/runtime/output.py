"""The pipes that carry a container's output, and the launcher's side of the log pump.

A container writes into two pipes. The read ends are held here and by the pump, with
what the pump needs to go on exactly where another pump was killed (see pumping). So
whichever of the two dies, no output is lost and no container gets SIGPIPE; the one
that starts again is given everything by the other.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.kernel import pipes
from agent.runtime.loop import Loop
from agent.runtime.messages import PROTOCOL, Channel, Message, close_all, connect
from agent.runtime.spec import LogSettings

PIPE_BYTES = 1 << 20
STAGING_BYTES = 1 << 18

_RECONNECT_S = 0.1
_DRY_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class OutputPipes:
    """Read ends of one container's output, both ends of staging pipes, the pump's journal."""

    stdout: int
    stdout_staged: int
    stdout_staging: int
    stderr: int
    stderr_staged: int
    stderr_staging: int
    journal: int

    def descriptors(self) -> list[int]:
        return [
            *(self.stdout, self.stdout_staged, self.stdout_staging),
            *(self.stderr, self.stderr_staged, self.stderr_staging),
            self.journal,
        ]


def make_pipes() -> tuple[OutputPipes, int, int]:
    """Return the pipes to hold, and the write ends for the container's stdout and stderr."""
    made: list[int] = []
    writers: list[int] = []
    try:
        for _ in range(2):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            made.append(reader)
            writers.append(writer)
            made += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(reader, False)
            # A smaller pipe only makes a container wait earlier for the pump.
            with suppress(PermissionError):
                pipes.resize(reader, PIPE_BYTES)
                pipes.resize(made[-1], STAGING_BYTES)
        made.append(os.memfd_create("estiba-journal", os.MFD_CLOEXEC))
    except OSError:
        close_all([*made, *writers])
        raise
    return OutputPipes(*made), writers[0], writers[1]


@dataclass(slots=True)
class _Held:
    log: LogSettings
    pipes: OutputPipes
    pidfd: int
    # The container's end is recorded, so the pump may drop it all when it is dry.
    ended: bool = False


class PumpLink:
    """The connection to the log pump, made again whenever it breaks.

    After each connect the two tell each other what they hold.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        *,
        found: Callable[[str, int], bool],
        synced: Callable[[], None],
    ) -> None:
        """
        Args:
            found: called with a name and a pidfd that the pump had kept; says whether
                the launcher still wants to know of it.
            synced: called when the pump has told everything.
        """
        self._loop = loop
        self._path = path
        self._found = found
        self._synced = synced
        self._channel: Channel | None = None
        self._held: dict[str, _Held] = {}
        self._known_to_pump: set[str] = set()
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._retrying = False

    def connect(self) -> None:
        """Connect now, or as soon as the pump listens."""
        if self._channel is not None:
            return
        try:
            link = connect(self._path)
        except OSError:
            self._retry()
            return
        self._known_to_pump.clear()
        self._channel = Channel(
            self._loop, link, received=self._receive, closed=lambda _: self._lost()
        )
        self._channel.send({"op": "hello", "protocol": PROTOCOL})

    def hold(self, name: str, log: LogSettings, output: OutputPipes, pidfd: int) -> None:
        """Keep a container's output, and have the pump write it, until it has ended and is dry."""
        self._held[name] = _Held(log, output, os.dup(pidfd))
        if self._channel is not None:
            self._hand_over(name)

    @property
    def has_all(self) -> bool:
        """Whether the pump has, or will get, all output that is held here."""
        if not self._held:
            return True
        channel = self._channel
        return channel is not None and channel.flushed and self._held.keys() <= self._known_to_pump

    def forget(self, name: str) -> None:
        """Say that the container's end is recorded: the pump need not keep its pidfd."""
        if name in self._held:
            self._held[name].ended = True
        if name and self._channel is not None:
            self._channel.send({"op": "forget", "name": name})

    def when_dry(self, name: str, then: Callable[[], None]) -> None:
        """Call ``then`` once a container's output is all in its log, or will not be soon."""
        if name not in self._held or self._channel is None:
            then()
            return
        self._waiting.setdefault(name, []).append(then)
        self._loop.after(_DRY_PATIENCE_S, lambda: self._tell_dry(name))

    def _tell_dry(self, name: str) -> None:
        for then in self._waiting.pop(name, ()):
            then()

    def _hand_over(self, name: str) -> None:
        held = self._held[name]
        if self._channel is not None:
            self._known_to_pump.add(name)
            self._channel.send(
                {"op": "hold", "name": name, "log": asdict(held.log), "ended": held.ended},
                [held.pidfd, *held.pipes.descriptors()],
            )

    def _receive(self, channel: Channel, message: Message, descriptors: list[int]) -> None:
        match message.get("op"):
            case "held":
                self._learn(message, descriptors)
            case "all-held":
                close_all(descriptors)
                for name in self._held.keys() - self._known_to_pump:
                    self._hand_over(name)
                self._synced()
            case "dry":
                close_all(descriptors)
                self._release(message["name"])
            case _:
                close_all(descriptors)
                channel.close()

    def _learn(self, message: Message, descriptors: Sequence[int]) -> None:
        """Take what an earlier launcher had given to the pump."""
        name = message["name"]
        pidfd, *rest = descriptors
        self._known_to_pump.add(name)
        wanted = self._found(name, os.dup(pidfd))
        if rest and name not in self._held:
            self._held[name] = _Held(LogSettings(**message["log"]), OutputPipes(*rest), pidfd)
        else:
            close_all(descriptors)
        if not wanted:
            self.forget(name)

    def _release(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held:
            close_all([held.pidfd, *held.pipes.descriptors()])
        self._tell_dry(name)

    def _lost(self) -> None:
        self._channel = None
        for name in list(self._waiting):
            self._tell_dry(name)
        self._retry()

    def _retry(self) -> None:
        if self._retrying:
            return
        self._retrying = True

        def again() -> None:
            self._retrying = False
            self.connect()

        self._loop.after(_RECONNECT_S, again)
