"""Read what containers wrote, from the log pump's files: all runs of a task, oldest first.

Lines are in CRI form: `2026-11-24T10:00:00.123456789Z stdout F text`. Files are
renamed while they are read (`3.log` becomes `3.log.1`), so a reader knows the file it
is in by its inode, and goes on with the next younger one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Self

from agent.tasks.folders import Folders
from estiba.v1 import control_pb2 as control
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.wire import seconds

CHUNK_BYTES = 64 * 1024
# A follower looks this often; inotify would save nothing while nobody follows.
LOOK_AGAIN_S = 0.1


class LogReader:
    """Serves the requests of one node; ``name_of`` returns a task's name for people, or ""."""

    def __init__(self, folders: Folders, *, node_id: str, name_of: Callable[[str], str]) -> None:
        self._folders = folders
        self._node_id = node_id
        self._name_of = name_of

    async def read(self, request: dispatch.ReadLogs) -> AsyncIterator[control.LogsResponse]:
        """Yield batches of lines: each task's after the other, then as they come if followed."""
        with ExitStack() as opened:
            logs = []
            for task_id in request.task_ids:
                if not self._name_of(task_id):
                    yield control.LogsResponse(
                        warnings=[f"node {self._node_id} knows no task {task_id}"]
                    )
                    continue
                folder = self._folders.task_logs(task_id)
                log = opened.enter_context(TaskLog(folder, since_s=seconds(request.since)))
                logs.append((task_id, log))
                if request.tail:
                    await asyncio.to_thread(log.skip_to_tail, request.tail)
                async for batch in self._drain(task_id, log):
                    yield batch
            while request.follow:
                await asyncio.sleep(LOOK_AGAIN_S)
                for task_id, log in logs:
                    async for batch in self._drain(task_id, log):
                        yield batch

    async def _drain(self, task_id: str, log: "TaskLog") -> AsyncIterator[control.LogsResponse]:
        while lines := await asyncio.to_thread(log.more):
            name = self._name_of(task_id)
            for line in lines:
                line.task_id, line.task_name, line.node_id = task_id, name, self._node_id
            yield control.LogsResponse(lines=lines)


class TaskLog:
    """A place in the logs of one task. Blocking: call it on a thread, one call at a time."""

    def __init__(self, folder: Path, *, since_s: float = 0.0) -> None:
        self._folder = folder
        self._since_s = since_s
        self._file: BinaryIO | None = None
        self._run = 0
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def skip_to_tail(self, lines: int) -> None:
        """Go to where the last so many lines begin."""
        for _, path in reversed(list(self._files())):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            found, offset = _nth_line_from_end(file, lines)
            self.close()
            self._enter(file, int(path.name.partition(".")[0]))
            file.seek(offset)
            lines -= found
            if lines <= 0:
                return

    def more(self) -> list[control.LogLine]:
        """Return the next lines, [] when there are none yet."""
        while True:
            if self._file is None and not self._go_on():
                return []
            chunk = self._read()
            if not chunk:
                if not self._go_on():
                    return []
                continue
            lines = self._parse(chunk)
            if lines:
                return lines

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> bytes:
        return self._file.read(CHUNK_BYTES) if self._file is not None else b""

    def _go_on(self) -> bool:
        """Enter the next younger file, unless this one has got more meanwhile."""
        inode = 0 if self._file is None else os.fstat(self._file.fileno()).st_ino
        files = list(self._files())
        inodes = [number for number, _ in files]
        # One that is not listed was deleted as the oldest, so all that are left are younger.
        younger = files[inodes.index(inode) + 1 :] if inode in inodes else files
        for _, path in younger:
            if self._file is not None and self._peek():
                return True
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            self.close()
            self._enter(file, int(path.name.partition(".")[0]))
            return True
        return False

    def _peek(self) -> bool:
        if self._file is None:
            return False
        size = os.fstat(self._file.fileno()).st_size
        return self._file.tell() < size

    def _enter(self, file: BinaryIO, run: int) -> None:
        self._file, self._run, self._rest = file, run, b""

    def _files(self) -> Iterator[tuple[int, Path]]:
        """Yield inode and path of every file, oldest first."""
        found = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    run, _, rotation = entry.name.partition(".log")
                    if run.isdecimal():
                        age = int(rotation.lstrip(".") or 0)
                        found.append((int(run), -age, entry.inode(), Path(entry.path)))
        except FileNotFoundError:
            return
        for _, _, inode, path in sorted(found):
            yield inode, path

    def _parse(self, chunk: bytes) -> list[control.LogLine]:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        lines = []
        for text in whole:
            line = parse_line(text, self._run)
            if line is not None and seconds(line.at) >= self._since_s:
                lines.append(line)
        return lines


def parse_line(text: bytes, run: int) -> control.LogLine | None:
    """Read one line in CRI form, None if it is none: cut short when the machine stopped."""
    stamp, _, rest = text.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    tag, space, body = rest.partition(b" ")
    if not space or len(stamp) < len("2026-11-24T10:00:00Z"):
        return None
    try:
        whole_s = _whole_seconds(stamp[:19])
        nanos = int(stamp[20:-1].ljust(9, b"0")[:9] or 0)
    except ValueError:
        return None
    line = control.LogLine(
        run=run, line=body, stderr=stream == b"stderr", partial=tag.startswith(b"P")
    )
    line.at.seconds, line.at.nanos = whole_s, nanos
    return line


@lru_cache(maxsize=16)
def _whole_seconds(stamp: bytes) -> int:
    return int(datetime.fromisoformat(stamp.decode()).replace(tzinfo=UTC).timestamp())


def _nth_line_from_end(file: BinaryIO, lines: int) -> tuple[int, int]:
    """Return how many lines there are, at most ``lines``, and where the first of them begins."""
    end = file.seek(0, os.SEEK_END)
    found = 0
    while end > 0:
        begin = max(end - CHUNK_BYTES, 0)
        file.seek(begin)
        block = file.read(end - begin)
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            # The line end found closes a line; the one before it is where that line begins.
            if found == lines:
                return found, begin + at + 1
            found += 1
        end = begin
    return found, 0
