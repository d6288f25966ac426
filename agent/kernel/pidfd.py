"""Processes by descriptor: a pid can be reused, a pidfd cannot."""

import errno
import fcntl
import os
import signal
import struct
from pathlib import Path

# _IOWR(0xFF, 11, struct pidfd_info) for the first published size, 64 bytes: mask,
# cgroup id, pid, tgid, ppid, eight user and group ids, exit code.
_PIDFD_GET_INFO = 3 << 30 | 64 << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")


def open_pidfd(pid: int) -> int:
    """Return a descriptor of a living or unreaped process.

    Source: pidfd_open(2); since Linux 5.3.
    """
    return os.pidfd_open(pid)


def send_signal(pidfd: int, number: int) -> None:
    """Send a signal to exactly this process.

    Raises:
        ProcessLookupError: it has ended.

    Source: pidfd_send_signal(2); since Linux 5.1.
    """
    signal.pidfd_send_signal(pidfd, number)


def reap(pidfd: int) -> int | None:
    """Return the wait status of an ended child, None while it runs.

    Raises:
        ChildProcessError: it is no child of this process, or was reaped before.

    Source: waitid(2), P_PIDFD; since Linux 5.4.
    """
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return result.si_status << 8
    return result.si_status | (0x80 if result.si_code == os.CLD_DUMPED else 0)


def exit_status(pidfd: int) -> int | None:
    """Return the wait status of a process that anybody has reaped; None if it is out of reach.

    It is out of reach while the process lives or is unreaped, and on kernels that
    do not keep it.

    Source: ioctl PIDFD_GET_INFO with PIDFD_INFO_EXIT, include/uapi/linux/pidfd.h;
    since Linux 6.15.
    """
    request = _INFO.pack(_PIDFD_INFO_EXIT, *(0,) * 12, 0)
    try:
        answer = _INFO.unpack(fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request))
    except OSError as error:
        if error.errno in {errno.ENOTTY, errno.EINVAL, errno.ESRCH}:
            return None
        raise
    return answer[-1] if answer[0] & _PIDFD_INFO_EXIT else None


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is none.

    Together with the pid it says who a process is.

    Source: proc_pid_stat(5), field 22.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def zombie_status(pid: int, started: int) -> int | None:
    """Return the wait status of an ended process that nobody has reaped yet.

    None if it lives, is gone, or the pid belongs to another by now. The caller needs
    CAP_SYS_PTRACE: without it the kernel shows 0.

    Source: proc_pid_stat(5), fields 3 and 52.
    """
    fields = _stat(pid)
    if not fields or fields[0] != "Z" or int(fields[19]) != started:
        return None
    return int(fields[49])


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on, none if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The second field is the command's name, in parentheses, and may hold any character.
    return text.rpartition(")")[2].split()
