"""File descriptors: opened without leaving a folder, closed in ranges, executed."""

import ctypes
import os
from collections.abc import Iterable
from typing import ClassVar

from agent.kernel.libc import check, system_call

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_CLOSE_RANGE_CLOEXEC = 0x4
_LAST_DESCRIPTOR = 0xFFFFFFFF


class _OpenHow(ctypes.Structure):
    """struct open_how, include/uapi/linux/openat2.h."""

    _fields_: ClassVar = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


_close_range = system_call(436, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
_openat2 = system_call(
    437, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t
)


def open_beneath(folder: int, path: str, flags: int, *, resolve: int, mode: int = 0) -> int:
    """Open ``path`` relative to the descriptor of a folder, resolved as RESOLVE_* demand.

    With RESOLVE_IN_ROOT, absolute paths and links, and "..", stay below the folder.

    Source: openat2(2); since Linux 5.6.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    done = _openat2(folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    return check(done, path)


def close_all_except(kept: Iterable[int]) -> None:
    """Close every descriptor above 2 but those in ``kept``.

    Source: close_range(2); since Linux 5.9.
    """
    first = 3
    for descriptor in sorted(fd for fd in kept if fd > 2):
        if descriptor > first:
            check(_close_range(first, descriptor - 1, 0), "open descriptors")
        first = descriptor + 1
    check(_close_range(first, _LAST_DESCRIPTOR, 0), "open descriptors")


def close_all_at_exec() -> None:
    """Let every descriptor above 2 close when this process executes a program.

    Source: close_range(2), CLOSE_RANGE_CLOEXEC; since Linux 5.11.
    """
    check(_close_range(3, _LAST_DESCRIPTOR, _CLOSE_RANGE_CLOEXEC), "open descriptors")
