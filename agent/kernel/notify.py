"""Tell the service manager how a small program is; `estiba.kit.notify` is for the large ones.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

import os
import re
import socket
from contextlib import suppress


def notify(*lines: str) -> None:
    """Send lines such as READY=1. Nothing happens where nobody asked to be told."""
    # An address that begins with @ is abstract: it has no file.
    address = re.sub("^@", "\0", os.environ.get("NOTIFY_SOCKET", ""))
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.setblocking(False)
        link.sendto("\n".join(lines).encode(), address)


def watchdog_s() -> float:
    """Return within which time a sign of life is demanded of this process, 0.0 if of none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0
