"""What a process may say about itself with prctl(2)."""

import ctypes
import os

from agent.kernel.libc import check, function

PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

_ulong = ctypes.c_ulong
_prctl = function("prctl", ctypes.c_int, _ulong, _ulong, _ulong, _ulong)


def control(option: int, value: int) -> None:
    """Set an option that takes one number.

    Source: prctl(2).
    """
    check(_prctl(option, value, 0, 0, 0), f"prctl {option}")


def set_name(name: str) -> None:
    """Set the name that `ps` shows: at most 15 bytes.

    Source: prctl(2), PR_SET_NAME.
    """
    buffer = ctypes.create_string_buffer(os.fsencode(name)[:15])
    control(PR_SET_NAME, ctypes.addressof(buffer))


def forbid_new_privileges() -> None:
    """Let no program executed from here on gain privileges: set-user-id bits do nothing.

    Source: prctl(2), PR_SET_NO_NEW_PRIVS.
    """
    control(PR_SET_NO_NEW_PRIVS, 1)


def forbid_tracing() -> None:
    """Let no process without CAP_SYS_PTRACE look into this one, until it executes.

    Source: prctl(2), PR_SET_DUMPABLE; proc(5), "/proc/PID" ownership.
    """
    control(PR_SET_DUMPABLE, 0)
