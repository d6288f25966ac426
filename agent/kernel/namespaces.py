"""Namespaces: made with a new process, entered, left; and what is set inside them."""

import ctypes
import fcntl
import os
import signal
import socket
import struct
from typing import ClassVar

from agent.kernel.libc import check, function, system_call

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_CLONE_PIDFD = 0x00001000

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


class _CloneArguments(ctypes.Structure):
    """struct clone_args up to `cgroup`, include/uapi/linux/sched.h."""

    _fields_: ClassVar = [
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack"),
            *("stack_size", "tls", "set_tid", "set_tid_size", "cgroup"),
        )
    ]


_clone3 = system_call(435, ctypes.POINTER(_CloneArguments), ctypes.c_size_t)
_setns = function("setns", ctypes.c_int, ctypes.c_int)
_unshare = function("unshare", ctypes.c_int)
_sethostname = function("sethostname", ctypes.c_char_p, ctypes.c_size_t)


def fork_into(namespaces: int) -> tuple[int, int]:
    """Fork a child into new namespaces (CLONE_NEW*), and return (pid, pidfd).

    Returns (0, -1) in the child, which must end in exec or ``os._exit``: the
    interpreter's own work after a fork is skipped. Call it from a process with one
    thread.

    Source: clone3(2); since Linux 5.3.
    """
    pidfd = ctypes.c_int(-1)
    # Built anew for every call: a field left from an earlier one would apply again.
    arguments = _CloneArguments(
        flags=namespaces | _CLONE_PIDFD,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=signal.SIGCHLD,
    )
    pid = check(_clone3(ctypes.byref(arguments), ctypes.sizeof(arguments)), "clone3")
    return pid, pidfd.value if pid else -1


def enter(descriptor: int, namespaces: int) -> None:
    """Enter namespaces of the process behind a pidfd, or the one a namespace file names.

    A pid namespace takes effect for children only.

    Source: setns(2); a pidfd and several namespaces at once since Linux 5.8.
    """
    check(_setns(descriptor, namespaces), f"namespaces {namespaces:#x}")


def leave(namespaces: int) -> None:
    """Move this process into new namespaces.

    Source: unshare(2).
    """
    check(_unshare(namespaces), f"namespaces {namespaces:#x}")


def set_hostname(name: str) -> None:
    """Set the host name of this process's UTS namespace: at most 64 bytes.

    Source: sethostname(2).
    """
    encoded = os.fsencode(name)
    check(_sethostname(encoded, len(encoded)), f"host name {name}")


def bring_up_loopback() -> None:
    """Set `lo` of this process's network namespace up; its addresses come by themselves.

    Source: netdevice(7), SIOCSIFFLAGS.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        _, flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        request = struct.pack("16sh22x", b"lo", flags | _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
