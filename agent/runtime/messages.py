"""Messages between agent, launcher and log pump: JSON over SEQPACKET, with descriptors.

A socket keeps messages apart, so one message is one JSON object. PROTOCOL is raised
when an older partner would misunderstand a newer one.
"""

import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.runtime.loop import READABLE, WRITABLE, Loop

PROTOCOL = 1

MAX_MESSAGE_BYTES = 128 * 1024
_MAX_DESCRIPTORS = 16
_MAX_WAITING = 10_000
# How long launcher and pump, told to stop, wait for the other to have all output.
HANDOVER_PATIENCE_S = 2.0

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def decode(data: bytes) -> Message:
    """Return a message.

    Raises:
        ValueError: it is no JSON object.
    """
    message = json.loads(data)
    if not isinstance(message, dict):
        raise TypeError(f"{message!r} is no message")
    return message


def listen(path: Path) -> socket.socket:
    """Listen at a path that only root can reach; replaces what a dead listener left."""
    # After a boot there is no /run/estiba, unless somebody has made it for us.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener


def connect(path: Path) -> socket.socket:
    """Connect to a listener.

    Raises:
        OSError: nobody listens there.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.connect(str(path))
    except OSError:
        link.close()
        raise
    link.setblocking(False)
    return link


class Channel:
    """One connection in a loop. Sends without waiting; what does not fit waits its turn."""

    def __init__(
        self,
        loop: Loop,
        link: socket.socket,
        *,
        received: Callable[["Channel", Message, list[int]], None],
        closed: Callable[["Channel"], None],
    ) -> None:
        self._loop = loop
        self._link = link
        self._received = received
        self._closed = closed
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self.open = True
        loop.watch(link.fileno(), self._readable)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message; descriptors are copied, so the caller may close its own at once."""
        if not self.open:
            return
        data = encode(message)
        if not self._waiting and self._send_now(data, descriptors):
            return
        if not self.open:
            return
        if len(self._waiting) >= _MAX_WAITING:
            # The other side has stopped reading: it may connect again and ask what it missed.
            self.close()
            return
        self._waiting.append((data, [os.dup(each) for each in descriptors]))
        self._loop.watch(self._link.fileno(), self._readable, READABLE | WRITABLE)

    @property
    def flushed(self) -> bool:
        """Whether all that was sent will arrive, even if this process ends now."""
        return self.open and not self._waiting

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._loop.forget(self._link.fileno())
        self._link.close()
        while self._waiting:
            close_all(self._waiting.popleft()[1])
        self._closed(self)

    def _send_now(self, data: bytes, descriptors: Sequence[int]) -> bool:
        try:
            socket.send_fds(self._link, [data], list(descriptors))
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        return True

    def _readable(self) -> None:
        self._flush()
        while self.open:
            try:
                data, descriptors, flags, _ = socket.recv_fds(
                    self._link, MAX_MESSAGE_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                close_all(descriptors)
                self.close()
                return
            try:
                message = decode(data)
            except (ValueError, TypeError):
                close_all(descriptors)
                self.close()
                return
            self._received(self, message, descriptors)

    def _flush(self) -> None:
        while self._waiting:
            data, descriptors = self._waiting[0]
            if not self._send_now(data, descriptors):
                return
            self._waiting.popleft()
            close_all(descriptors)
            if not self._waiting:
                self._loop.watch(self._link.fileno(), self._readable)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
