"""A pump that is killed between any two of its steps, played with real pipes."""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kernel import mounts, pipes
from agent.runtime.logfile import LogFile, Rest, format_lines
from agent.runtime.loop import Loop
from agent.runtime.messages import close_all
from agent.runtime.output import make_pipes
from agent.runtime.pumping import Journal, Pumping, Scratch
from agent.runtime.spec import LogSettings

FIRST = b"one\ntwo\n"
SECOND = b"three\nfour\nfi"
LAST = b"ve\n"


class Output:
    """A container's pipes, with pumps that come one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pipes, self.stdout, self.stderr = make_pipes()
        self.log = LogFile(LogSettings(str(path)))
        self.journal = Journal(self.pipes.journal)

    def pump_to_the_end(self) -> list[str]:
        """End the output, let a new pump write all of it; return the lines in the log."""
        close_all([self.stdout, self.stderr])
        loop = Loop()
        log = LogFile(LogSettings(str(self.path)))
        Pumping(loop, Scratch(), self.pipes, log, dry=loop.stop).begin()
        loop.run()
        return [line.split(" ", 3)[3] for line in self.path.read_text().splitlines()]

    def stage(self, data: bytes) -> None:
        """Do the first step of a turn: move output into the staging pipe."""
        os.write(self.stdout, data)
        pipes.move(self.pipes.stdout, self.pipes.stdout_staging, len(data))

    def announce(self, used: int) -> None:
        staged = pipes.waiting_bytes(self.pipes.stdout_staged)
        self.journal.announce(0, self.log.size(), staged, used)

    def append(self, data: bytes) -> None:
        self.log.append(entries(data))

    def drain(self, used: int) -> None:
        os.read(self.pipes.stdout_staged, used)


def entries(data: bytes) -> bytes:
    return format_lines(
        data, stream="stdout", now_ns=time.time_ns(), rest=Rest.KEEP, room_bytes=1 << 20
    )[0]


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Output]:
    output = Output(tmp_path / "log")
    # A turn that was done in full.
    output.stage(FIRST)
    output.announce(len(FIRST))
    output.append(FIRST)
    output.drain(len(FIRST))
    output.journal.done()
    output.stage(SECOND)
    os.write(output.stdout, LAST)
    yield output
    output.log.close()


ALL = ["one", "two", "three", "four", "five"]
USED = len(SECOND) - len(b"fi")


def test_killed_after_staging(output: Output) -> None:
    assert output.pump_to_the_end() == ALL


def test_killed_after_announcing(output: Output) -> None:
    output.announce(USED)
    assert output.pump_to_the_end() == ALL


def test_killed_in_the_middle_of_writing(output: Output) -> None:
    output.announce(USED)
    text = entries(SECOND)
    output.log.append(text[: len(text) // 2])
    assert output.pump_to_the_end() == ALL


def test_killed_after_writing(output: Output) -> None:
    output.announce(USED)
    output.append(SECOND)
    assert output.pump_to_the_end() == ALL


def test_killed_in_the_middle_of_draining(output: Output) -> None:
    output.announce(USED)
    output.append(SECOND)
    output.drain(3)
    assert output.pump_to_the_end() == ALL


def test_killed_after_draining(output: Output) -> None:
    output.announce(USED)
    output.append(SECOND)
    output.drain(USED)
    assert output.pump_to_the_end() == ALL


def test_killed_after_it_was_done(output: Output) -> None:
    output.announce(USED)
    output.append(SECOND)
    output.drain(USED)
    output.journal.done()
    assert output.pump_to_the_end() == ALL


def test_all_descriptors_are_closed_at_the_end(tmp_path: Path) -> None:
    output = Output(tmp_path / "log")
    os.write(output.stdout, FIRST)
    assert output.pump_to_the_end() == ["one", "two"]
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert not any("estiba-journal" in link for link in links)


def test_output_in_packets_is_whole_and_gets_into_no_other_log(tmp_path: Path) -> None:
    # A container may set O_DIRECT on its output: then a read returns one write, and what a
    # shorter read leaves is lost. Source: pipe(2), O_DIRECT.
    loop, scratch = Loop(), Scratch()
    evil, good = Output(tmp_path / "evil"), Output(tmp_path / "good")
    fcntl.fcntl(evil.stdout, fcntl.F_SETFL, os.O_DIRECT)
    for number in range(20):
        os.write(evil.stdout, f"forged {number}\nnext ".encode())
    os.write(good.stdout, b"true\n")
    for output in (evil, good):
        close_all([output.stdout, output.stderr])
        log = LogFile(LogSettings(str(output.path)))
        Pumping(loop, scratch, output.pipes, log, dry=loop.stop).begin()
        loop.run()
    forged = ["forged 0", *(f"next forged {number}" for number in range(1, 20)), "next "]
    assert [line.split(" ", 3)[3] for line in evil.path.read_text().splitlines()] == forged
    assert [line.split(" ", 3)[3] for line in good.path.read_text().splitlines()] == ["true"]


def test_a_full_disk_costs_output_which_is_told_when_there_is_room_again(
    small_disk: Path,
) -> None:
    output = Output(small_disk / "log")
    loop = Loop()
    pumping = Pumping(
        loop, Scratch(), output.pipes, LogFile(LogSettings(str(output.path))), loop.stop
    )
    pumping.begin()
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (SMALL_DISK_BYTES - 8192))
    for text in (b"first\n", b"much\n" * 2000, b"last\n"):
        os.write(output.stdout, text)
        while pipes.waiting_bytes(output.pipes.stdout):
            loop.after(0, loop.stop)
            loop.run()
        if text.startswith(b"much"):
            filler.unlink()
    close_all([output.stdout, output.stderr])
    loop.run()
    lines = [line.split(" ", 3)[3] for line in output.path.read_text().splitlines()]
    assert lines == ["first", "10000 bytes of output could not be written", "last"]


SMALL_DISK_BYTES = 64 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounts.mount("tmpfs", "tmpfs", str(tmp_path), 0, f"size={SMALL_DISK_BYTES}")
    yield tmp_path
    mounts.unmount(str(tmp_path))
