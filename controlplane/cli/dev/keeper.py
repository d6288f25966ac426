"""Keep one program running: start it, start it again when it ends, stop it when told."""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from controlplane.cli.dev.plan import Program
from estiba.kit.backoff import Backoff

log = logging.getLogger("keeper")

# A program that ran this long has started well: its next failure is the first again.
SETTLED_S = 10.0
STOP_TIMEOUT_S = 10.0
LARGEST_LOG_BYTES = 32 * 1024 * 1024


class State(StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    STOPPED = "stopped"


class Keeper:
    """One program and its present process, if there is one."""

    def __init__(
        self,
        program: Program,
        *,
        before: Sequence[str] = (),
        log_file: Path,
        environment: Mapping[str, str],
        descriptors: Sequence[int] = (),
    ) -> None:
        """``before`` are words that go before the program's own, such as those of nsenter."""
        self.program = program
        self._argv = (*before, *program.argv)
        self._log_file = log_file
        self._environment = dict(environment)
        self._descriptors = tuple(descriptors)
        self._process: asyncio.subprocess.Process | None = None
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._unwanted.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._state = State.STOPPED
        self._since_s = time.time()
        self._restarts = 0
        self._last_exit = ""

    def start(self) -> None:
        self._unwanted.clear()
        self._wanted.set()

    async def stop(self, *, kill: bool = False) -> None:
        """Ask the program to end, insist after ten seconds, return when it has ended."""
        self._wanted.clear()
        self._unwanted.set()
        if self._process is not None:
            self._signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%s does not end, killing it", self.program.name)
            self._signal(signal.SIGKILL)
            await self._idle.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def status(self) -> dict[str, object]:
        return {
            "name": self.program.name,
            "pid": self._process.pid if self._process is not None else 0,
            "state": self._state.value,
            "since": self._since_s,
            "restarts": self._restarts,
            "last_exit": self._last_exit,
            "address": self.program.address,
            "namespace": self.program.namespace,
            "log": str(self._log_file),
        }

    async def run(self) -> None:
        """Keep the program as it is wanted, until cancelled."""
        backoff = Backoff(first_s=0.1, most_s=5.0, random=random.random)
        while True:
            self._become(State.STOPPED)
            self._idle.set()
            await self._wanted.wait()
            self._idle.clear()
            while self._wanted.is_set():
                began = time.monotonic()
                await self._live()
                if time.monotonic() - began >= SETTLED_S:
                    backoff.reset()
                if self._wanted.is_set():
                    await self._rest(backoff.next_s())

    async def _live(self) -> None:
        """Run the program once."""
        _keep_small(self._log_file)
        with self._log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd="/",
                pass_fds=self._descriptors,
                start_new_session=True,
            )
        self._become(State.RUNNING)
        if not self._wanted.is_set():
            # It was told to stop while it was being started.
            self._signal(signal.SIGTERM)
        code = await self._process.wait()
        self._process = None
        self._last_exit = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._wanted.is_set():
            log.warning("%s ended: %s", self.program.name, self._last_exit)

    async def _rest(self, delay_s: float) -> None:
        self._restarts += 1
        self._become(State.WAITING)
        try:
            async with asyncio.timeout(delay_s):
                await self._unwanted.wait()
        except TimeoutError:
            return

    def _become(self, state: State) -> None:
        self._state = state
        self._since_s = time.time()


def _keep_small(log_file: Path) -> None:
    """Begin a new log file, keeping one old one, when this one has grown large."""
    try:
        if log_file.stat().st_size > LARGEST_LOG_BYTES:
            log_file.replace(log_file.with_suffix(".old.log"))
    except FileNotFoundError:
        return
