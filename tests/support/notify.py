"""A service manager that only listens: what systemd would be told on a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

WITHIN_S = 20.0


@dataclass(slots=True)
class Manager:
    """``environment`` is what a program needs to tell it."""

    address: str
    _socket: socket.socket
    _unread: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address}

    def watching(self, within_s: float) -> dict[str, str]:
        """Demand a sign of life within so many seconds of this very process."""
        demand = {"WATCHDOG_USEC": str(round(within_s * 1e6)), "WATCHDOG_PID": str(os.getpid())}
        return self.environment | demand

    def hear(self, beginning: str) -> list[str]:
        """Wait for a line that begins so; return all since the last call, that one included."""
        heard: list[str] = []
        while True:
            while self._unread:
                heard.append(self._unread.pop(0))
                if heard[-1].startswith(beginning):
                    return heard
            self._unread += self._socket.recv(4096).decode().splitlines()


@contextmanager
def listening(address: str | Path) -> Iterator[Manager]:
    """Listen at a path, or at an abstract address that begins with @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        name = str(address)
        link.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        link.settimeout(WITHIN_S)
        yield Manager(name, link)
