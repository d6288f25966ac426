"""The C library and the system calls it does not wrap, with typed arguments.

PyDLL keeps the interpreter's lock during a call: what runs here is short, and a
clone must not return in a child whose lock belongs to nobody.
"""

import ctypes
import os
from collections.abc import Callable
from functools import partial

Call = Callable[..., int]

_libc = ctypes.PyDLL(None, use_errno=True)


def function(name: str, *argument_types: type) -> Call:
    """Return a function of the C library that answers with an int."""
    found = _libc[name]
    found.restype = ctypes.c_int
    found.argtypes = argument_types
    return found


def system_call(number: int, *argument_types: type) -> Call:
    """Return a system call by its number.

    Numbers from 424 on are the same on every architecture.
    Source: syscall(2); include/uapi/asm-generic/unistd.h.
    """
    # Indexing makes a new function object each time, so each call keeps its own types.
    found = _libc["syscall"]
    found.restype = ctypes.c_long
    found.argtypes = (ctypes.c_long, *argument_types)
    return partial(found, number)


def check(result: int, subject: str) -> int:
    """Return the result of a call; raise what errno says about ``subject`` if it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result
