"""Tell the service manager how this program is: ready, alive, stopping, and what it does.

Where none asked to be told, nothing is sent. Source: sd_notify(3), sd_watchdog_enabled(3).
"""

import asyncio
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress

from estiba.kit.text import plain


class Notifier:
    """What cannot be told is no reason to end: the manager misses it, or it does not."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        # An address that begins with @ is abstract: it has no file.
        self._address = re.sub("^@", "\0", environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environment)

    def ready(self, status: str) -> None:
        """It serves; ``status`` is what `systemctl status` shows."""
        self._send("READY=1", f"STATUS={plain(status)}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={plain(status)}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    async def stay_alive(self) -> None:
        """Say that the event loop turns, twice as often as the manager demands, until cancelled."""
        while self._watchdog_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.setblocking(False)
            link.sendto("\n".join(lines).encode(), self._address)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Return within which time a sign of life is demanded of this process, 0.0 if of none."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0
