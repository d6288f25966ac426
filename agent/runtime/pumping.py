"""Move one container's output from its pipes into its log, each byte exactly once.

A pump may be killed at any moment, and the next one goes on from descriptors that the
launcher kept. So nothing is taken out of a pipe before it is in the log: output is
spliced into a staging pipe, copied from there, written, and only then drained. A journal
of one record, in memory that both programs hold, says what was about to be written: with
it, the next pump knows from the level of the staging pipe whether the log has to be cut
back, or the drain to be finished.
"""

import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from agent.kernel import pipes
from agent.runtime.logfile import LogFile, Rest, format_lines
from agent.runtime.loop import Loop
from agent.runtime.messages import close_all
from agent.runtime.output import STAGING_BYTES, OutputPipes

# One container's turn: others wait no longer than it takes to write this.
_TURN_BYTES = 64 * 1024


@dataclass(slots=True)
class _Stream:
    name: str
    source: int
    staged: int
    staging: int
    ended: bool = False


class Scratch:
    """A pipe into which staged output is copied, so that it can be read and yet be there."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pipes.resize(self._writer, STAGING_BYTES)
        self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def peek(self, pipe: int) -> bytes:
        """Return what waits in a pipe, or at least the first part of it."""
        try:
            size = pipes.copy(pipe, self._writer, STAGING_BYTES)
        except BlockingIOError:
            return b""
        data = os.read(self._reader, size)
        while len(data) < size:
            # A container that opened its output with O_DIRECT writes packets, and a read
            # returns one. What is not read here would get into the log of another.
            data += os.read(self._reader, size - len(data))
        return data

    def drain(self, pipe: int, size: int) -> None:
        """Take bytes out of a pipe that has them."""
        while size:
            size -= pipes.discard(pipe, self._null, size)


class Journal:
    """One record: this stream's staging pipe held so much, of which so much goes into the log."""

    _RECORD: ClassVar = struct.Struct("=QQQQ")
    _IDLE: ClassVar = _RECORD.pack(0, 0, 0, 0)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def announce(self, stream: int, log_size: int, staged: int, used: int) -> None:
        os.pwrite(self._descriptor, self._RECORD.pack(stream + 1, log_size, staged, used), 0)

    def done(self) -> None:
        os.pwrite(self._descriptor, self._IDLE, 0)

    def read(self) -> tuple[int, int, int, int] | None:
        """Return what was announced and not done: stream, log size, staged, used."""
        data = os.pread(self._descriptor, self._RECORD.size, 0)
        if len(data) < self._RECORD.size or data == self._IDLE:
            return None
        stream, log_size, staged, used = self._RECORD.unpack(data)
        return stream - 1, log_size, staged, used


class Pumping:
    """The output of one container, from its pipes into its log file."""

    def __init__(
        self,
        loop: Loop,
        scratch: Scratch,
        output: OutputPipes,
        log: LogFile,
        dry: Callable[[], None],
    ) -> None:
        """
        Args:
            dry: called once, when both streams have ended and everything is written.
        """
        self._loop = loop
        self._scratch = scratch
        self._output = output
        self._log = log
        self._dry = dry
        self._journal = Journal(output.journal)
        self._lost_bytes = 0
        self._streams = (
            _Stream("stdout", output.stdout, output.stdout_staged, output.stdout_staging),
            _Stream("stderr", output.stderr, output.stderr_staged, output.stderr_staging),
        )

    def begin(self) -> None:
        """Repair what an earlier pump was killed in, then write whenever there is output."""
        self._recover()
        for index, stream in enumerate(self._streams):
            self._loop.watch(stream.source, partial(self._turn, index))

    def _recover(self) -> None:
        announced = self._journal.read()
        if announced is None:
            return
        number, log_size, staged, used = announced
        stream = self._streams[number]
        waiting = pipes.waiting_bytes(stream.staged)
        if waiting == staged:
            # Nothing was drained, so all of it will be written again. If the log is gone
            # by now, nothing needs to be cut.
            with suppress(OSError):
                self._log.cut(log_size)
        else:
            # It was killed while it drained what it had written.
            self._scratch.drain(stream.staged, waiting - (staged - used))
        self._journal.done()

    def _turn(self, index: int) -> None:
        """Write what one stream has, at most so much that others get their turn."""
        stream = self._streams[index]
        rest = Rest.KEEP
        try:
            if pipes.move(stream.source, stream.staging, _TURN_BYTES) == 0:
                rest = Rest.FULL
        except BlockingIOError:
            # A line that comes in many small pieces has filled the staging pipe.
            rest = Rest.PART
        while self._write(index, rest):
            pass
        if rest is Rest.FULL and pipes.waiting_bytes(stream.staged) == 0:
            self._end(stream)

    def _write(self, index: int, rest: Rest) -> bool:
        """Write what fits into one log file; return whether there may be more."""
        stream = self._streams[index]
        staged = pipes.waiting_bytes(stream.staged)
        data = self._scratch.peek(stream.staged)
        if not data:
            return False
        if len(data) < staged and rest is Rest.FULL:
            rest = Rest.KEEP
        try:
            used = self._append(index, data, staged, rest)
        except OSError:
            # A full disk costs output, not the container's progress.
            used = len(data)
            self._lost_bytes += used
        if used:
            self._scratch.drain(stream.staged, used)
            self._journal.done()
        return 0 < used < staged

    def _append(self, index: int, data: bytes, staged: int, rest: Rest) -> int:
        """Write entries into the log; return how many bytes of ``data`` they stand for."""
        form = partial(format_lines, now_ns=time.time_ns(), room_bytes=self._log.room_bytes())
        entries, used = form(data, stream=self._streams[index].name, rest=rest)
        if not used:
            return 0
        if self._lost_bytes:
            note = f"{self._lost_bytes} bytes of output could not be written".encode()
            entries = form(note, stream="stderr", rest=Rest.FULL)[0] + entries
        self._log.rotate_unless_fits(len(entries))
        log_size = self._log.size()
        self._journal.announce(index, log_size, staged, used)
        try:
            self._log.append(entries)
        except OSError:
            self._log.cut(log_size)
            raise
        self._lost_bytes = 0
        return used

    def _end(self, stream: _Stream) -> None:
        self._loop.forget(stream.source)
        stream.ended = True
        if all(each.ended for each in self._streams):
            self._log.close()
            close_all(self._output.descriptors())
            self._dry()
