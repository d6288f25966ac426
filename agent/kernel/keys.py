"""Kernel keyrings, which namespaces do not keep apart."""

import ctypes
import errno
import os

from agent.kernel.libc import check, system_call

_SYSTEM_CALL = {"x86_64": 250, "aarch64": 219}
"""keyctl(2) is older than the numbers that all architectures share."""

_JOIN_SESSION_KEYRING = 1


def leave_session_keyring() -> None:
    """Give this process a session keyring of its own, empty, in place of the inherited one.

    Where the kernel was built without keys there is nothing to leave.

    Source: keyctl(2), KEYCTL_JOIN_SESSION_KEYRING.
    """
    call = system_call(_SYSTEM_CALL[os.uname().machine], ctypes.c_int, ctypes.c_char_p)
    try:
        check(call(_JOIN_SESSION_KEYRING, None), "session keyring")
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
