"""Signals as a descriptor, and the state that a new program should start with."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable

from agent.kernel.libc import check, function

_SIGNALFD_RECORD_BYTES = 128

_signalfd = function("signalfd", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_sigemptyset = function("sigemptyset", ctypes.c_void_p)
_sigaddset = function("sigaddset", ctypes.c_void_p, ctypes.c_int)


def signal_descriptor(numbers: Iterable[int]) -> int:
    """Block signals and return a descriptor that becomes readable when one comes.

    Source: signalfd(2).
    """
    numbers = list(numbers)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    # Larger than any C library's sigset_t.
    chosen = ctypes.create_string_buffer(128)
    _sigemptyset(ctypes.byref(chosen))
    for number in numbers:
        _sigaddset(ctypes.byref(chosen), number)
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    return check(_signalfd(-1, ctypes.byref(chosen), flags), "signalfd")


def take_signal(descriptor: int) -> int:
    """Read one signal's number from a signal descriptor."""
    return int.from_bytes(os.read(descriptor, _SIGNALFD_RECORD_BYTES)[:4], sys.byteorder)


def reset_signals() -> None:
    """Give every signal its default action and block none.

    Python ignores SIGPIPE and SIGXFSZ, and what is ignored or blocked stays so
    through exec.

    Source: execve(2); signal(7), "Signal mask and pending signals".
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
