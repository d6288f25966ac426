"""Log files in the CRI form, kept below a size by renaming: `1.log`, older ones `1.log.1`, ...

A line is `TIME STREAM TAG TEXT`: time in UTC with nanoseconds, stdout or stderr, F for a
full line or P for a part that the next entry of the stream goes on with.

Source: Kubernetes design proposal "CRI: Log management".
"""

import os
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path

from agent.runtime.spec import LogSettings

MAX_LINE_BYTES = 16 * 1024

_FULL = b" F "
_PART = b" P "
_NANOS = 1_000_000_000


class Rest(Enum):
    """What to do with output after its last newline."""

    KEEP = "wait for more, unless it is too long for one entry"
    PART = "write it as a part of a line"
    FULL = "write it as a line: nothing will follow"


def format_lines(
    data: bytes, *, stream: str, now_ns: int, rest: Rest, room_bytes: int
) -> tuple[bytes, int]:
    """Turn output into entries; return them, and how many bytes of ``data`` they stand for.

    Args:
        room_bytes: stop before the entries are longer than this, but not before the first.
    """
    head = f"{timestamp(now_ns)} {stream}".encode()
    full, part = head + _FULL, head + _PART
    end = data.rfind(b"\n") + 1
    lines = data[:end].split(b"\n")
    tail = data[end:]
    # After the last newline there is one more, empty, line.
    lines.pop()
    if rest is Rest.FULL and tail:
        lines.append(tail)
        tail = b""
    entries = []
    for line in lines:
        while len(line) > MAX_LINE_BYTES:
            entries.append(part + line[:MAX_LINE_BYTES] + b"\n")
            line = line[MAX_LINE_BYTES:]
        entries.append(full + line + b"\n")
    while len(tail) > MAX_LINE_BYTES or (tail and rest is Rest.PART):
        entries.append(part + tail[:MAX_LINE_BYTES] + b"\n")
        tail = tail[MAX_LINE_BYTES:]
    text = b"".join(entries)
    if len(text) > room_bytes and len(entries) > 1:
        return _cut(entries, room_bytes, overhead=len(full) + 1)
    return text, len(data) - len(tail)


def _cut(entries: list[bytes], room_bytes: int, *, overhead: int) -> tuple[bytes, int]:
    """Return as many whole entries as have room, and how much output they stand for."""
    size = len(entries[0])
    count = 1
    while size + len(entries[count]) <= room_bytes:
        size += len(entries[count])
        count += 1
    taken = entries[:count]
    # A full line stands for its newline as well; the very last one, which may have had
    # none, is never among these.
    newlines = sum(entry.startswith(_FULL, overhead - 1 - len(_FULL)) for entry in taken)
    return b"".join(taken), size - overhead * count + newlines


def timestamp(now_ns: int) -> str:
    """Return a time in the form 2026-11-24T10:00:00.123456789Z."""
    seconds, nanos = divmod(now_ns, _NANOS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"


class LogFile:
    """The newest log file of one container, made when there is something to write."""

    def __init__(self, settings: LogSettings) -> None:
        self._path = Path(settings.path)
        self._max_size_bytes = settings.max_size_bytes
        self._max_files = max(1, settings.max_files)
        self._descriptor = -1
        self._size = 0

    def size(self) -> int:
        """Return the size of the newest file, opened if it was not."""
        self._open()
        return self._size

    def append(self, data: bytes) -> None:
        """Write all of ``data``; raise OSError if the disk refuses."""
        self._open()
        view = memoryview(data)
        while view:
            written = os.write(self._descriptor, view)
            self._size += written
            view = view[written:]

    def cut(self, size: int) -> None:
        """Take back what was written beyond ``size``."""
        self._open()
        if size < self._size:
            os.ftruncate(self._descriptor, size)
            self._size = size

    def room_bytes(self) -> int:
        """Return how much still fits into the newest file."""
        return max(0, self._max_size_bytes - self.size())

    def rotate_unless_fits(self, size: int) -> None:
        """Rename the files by one and begin a new one, if the newest has no room for this."""
        if self._size == 0 or self._size + size <= self._max_size_bytes:
            return
        self.close()
        for number in range(self._max_files - 1, 0, -1):
            source = self._path if number == 1 else self._numbered(number - 1)
            with suppress(FileNotFoundError):
                source.replace(self._numbered(number))
        if self._max_files == 1:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._size = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> None:
        if self._descriptor >= 0:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size
