"""syncfs(2): write out one file system's changes."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syncfs.argtypes = (ctypes.c_int,)


def syncfs(descriptor: int) -> None:
    """Return when all that was changed on this descriptor's file system is on its disk.

    Raises:
        OSError: as the kernel says it. EIO, ENOSPC: something could not be written.
    """
    if _libc.syncfs(descriptor) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
