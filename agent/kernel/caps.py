"""Capabilities of this process: the numbers, the bounding set, the three sets."""

import ctypes
from collections.abc import Iterable
from pathlib import Path

from agent.kernel.libc import check, function
from agent.kernel.prctl import PR_CAPBSET_DROP, control

NAMES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID"),
    *("CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE"),
    *("CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW"),
    *("CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT"),
    *("CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE"),
    *("CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE"),
    *("CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE"),
    *("CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ"),
    *("CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"),
)
"""In the order of their numbers. Source: include/uapi/linux/capability.h."""

_VERSION_3 = 0x20080522

_capset = function("capset", ctypes.c_void_p, ctypes.c_void_p)


def mask(names: Iterable[str]) -> int:
    """Return the bits of capabilities given by name.

    Raises:
        ValueError: a name is none of NAMES.
    """
    bits = 0
    for name in names:
        if name not in NAMES:
            raise ValueError(f"unknown capability {name}")
        bits |= 1 << NAMES.index(name)
    return bits


def limit_bounding(allowed: int, last: int) -> None:
    """Drop what is not in ``allowed`` from the bounding set, for good.

    Args:
        last: what `last_number` said, asked while /proc was there.

    Source: capabilities(7), "Capability bounding set"; PR_CAPBSET_DROP.
    """
    for number in range(last + 1):
        if not allowed >> number & 1:
            control(PR_CAPBSET_DROP, number)


def last_number() -> int:
    """Return the highest capability that this kernel knows."""
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def set_capabilities(permitted: int) -> None:
    """Make ``permitted`` the permitted and effective set, and the inheritable one empty.

    An inheritable set that is not empty would hand files' capabilities to programs
    that were never meant to have them (CVE-2022-24769).

    Source: capset(2), version 3.
    """
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    check(_capset(ctypes.byref(header), ctypes.byref(data)), "capset")
