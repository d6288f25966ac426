"""Pipes: sized, measured, and moved or copied inside the kernel."""

import ctypes
import fcntl
import os
import struct
import termios

from agent.kernel.libc import check, function

_SPLICE_F_NONBLOCK = 0x2

_tee = function("tee", ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)


def copy(source: int, target: int, size_bytes: int) -> int:
    """Copy what waits in one pipe into another without taking it out; return how much.

    Raises:
        BlockingIOError: nothing waits, or the target is full.

    Source: tee(2).
    """
    return check(_tee(source, target, size_bytes, _SPLICE_F_NONBLOCK), "tee")


def move(source: int, target: int, size_bytes: int) -> int:
    """Move bytes from one pipe to another; return how many, 0 at the end of the source.

    Raises:
        BlockingIOError: nothing waits, or the target is full.

    Source: splice(2).
    """
    return os.splice(source, target, size_bytes, flags=os.SPLICE_F_NONBLOCK)


def discard(pipe: int, null: int, size_bytes: int) -> int:
    """Take bytes out of a pipe and drop them; return how many, fewer if a signal comes.

    Unlike read(2), this may end in the middle of a packet (pipe2, O_DIRECT) without
    losing the rest of it.

    Args:
        null: a descriptor of /dev/null, open for writing.

    Source: splice(2).
    """
    return os.splice(pipe, null, size_bytes, flags=os.SPLICE_F_NONBLOCK)


def waiting_bytes(pipe: int) -> int:
    """Return how many bytes wait in a pipe.

    Source: pipe(7), FIONREAD.
    """
    (size,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))
    return int(size)


def resize(pipe: int, size_bytes: int) -> None:
    """Set the capacity of a pipe.

    Raises:
        PermissionError: it is above /proc/sys/fs/pipe-max-size, or the user's pipes
            are too large together, and CAP_SYS_RESOURCE is absent.

    Source: fcntl(2), F_SETPIPE_SZ.
    """
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size_bytes)
