"""Mounts: made as file descriptors, changed, and attached where a descriptor points.

A mount that is attached to a descriptor cannot be led astray by a symbolic link,
which is why the path-based mount(2) is left for the overlay alone.
"""

import ctypes
import os
from typing import ClassVar

from agent.kernel.libc import check, function, system_call

MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8
ATTR_NOATIME = 0x10
ATTR_STRICTATIME = 0x20

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_FSOPEN_CLOEXEC = 0x1
_FSMOUNT_CLOEXEC = 0x1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40


class _MountAttributes(ctypes.Structure):
    """struct mount_attr, include/uapi/linux/mount.h."""

    _fields_: ClassVar = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


_text = ctypes.c_char_p
_int = ctypes.c_int
_uint = ctypes.c_uint
_mount = function("mount", _text, _text, _text, ctypes.c_ulong, _text)
_umount2 = function("umount2", _text, _int)
_pivot_root = function("pivot_root", _text, _text)
_open_tree = system_call(428, _int, _text, _uint)
_move_mount = system_call(429, _int, _text, _int, _text, _uint)
_fsopen = system_call(430, _text, _uint)
_fsconfig = system_call(431, _int, _uint, _text, _text, _int)
_fsmount = system_call(432, _int, _uint, _uint)
_mount_setattr = system_call(
    442, _int, _text, _uint, ctypes.POINTER(_MountAttributes), ctypes.c_size_t
)


def set_propagation(path: str, propagation: int) -> None:
    """Change how mounts below ``path`` propagate, recursively, such as by MS_PRIVATE.

    Source: mount_namespaces(7), SHARED SUBTREES.
    """
    check(_mount(None, os.fsencode(path), None, propagation | MS_REC, None), path)


def mount(kind: str, source: str, target: str, flags: int, options: str) -> None:
    """Mount a filesystem at a path, with options as one string of at most one page.

    Source: mount(2).
    """
    check(
        _mount(source.encode(), os.fsencode(target), kind.encode(), flags, os.fsencode(options)),
        target,
    )


def unmount(path: str) -> None:
    """Detach what is mounted at ``path``; it goes when its last user does.

    Source: umount2(2), MNT_DETACH.
    """
    check(_umount2(os.fsencode(path), MNT_DETACH), path)


def new_filesystem(kind: str, options: tuple[str, ...], attributes: int) -> int:
    """Make a filesystem that is mounted nowhere yet; return a descriptor of its root.

    Args:
        options: each ``key=value`` or ``flag``, such as ``mode=755``.
        attributes: ATTR_* of the mount.

    Source: fsopen(2), fsconfig(2), fsmount(2); since Linux 5.2.
    """
    context = check(_fsopen(kind.encode(), _FSOPEN_CLOEXEC), kind)
    try:
        # What `df` and `mount` show in the first column.
        for option in (f"source={kind}", *options):
            key, equals, value = option.partition("=")
            if equals:
                done = _fsconfig(context, _FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
            else:
                done = _fsconfig(context, _FSCONFIG_SET_FLAG, key.encode(), None, 0)
            check(done, f"{kind} option {option}")
        check(_fsconfig(context, _FSCONFIG_CMD_CREATE, None, None, 0), kind)
        return check(_fsmount(context, _FSMOUNT_CLOEXEC, attributes), kind)
    finally:
        os.close(context)


def clone_tree(path: str, *, at: int = _AT_FDCWD, recursive: bool = False) -> int:
    """Return a descriptor of a detached copy of the mount at ``path``: a bind mount to be.

    With ``at`` and an empty path, of what that descriptor points to.

    Source: open_tree(2), OPEN_TREE_CLONE; since Linux 5.2.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    flags |= _AT_RECURSIVE if recursive else 0
    flags |= 0 if path else _AT_EMPTY_PATH
    return check(_open_tree(at, os.fsencode(path), flags), path or f"descriptor {at}")


def set_attributes(descriptor: int, attributes: int) -> None:
    """Add ATTR_* to the mounts below a descriptor that points to a mount's root.

    Source: mount_setattr(2); since Linux 5.12.
    """
    wanted = _MountAttributes(attr_set=attributes)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    size = ctypes.sizeof(wanted)
    done = _mount_setattr(descriptor, b"", flags, ctypes.byref(wanted), size)
    check(done, f"descriptor {descriptor}")


def attach(tree: int, target: int, name: str) -> None:
    """Attach a detached mount on top of what the descriptor ``target`` points to.

    Args:
        name: what to call the target in an error.

    Source: move_mount(2); since Linux 5.2.
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    check(_move_mount(tree, b"", target, b"", flags), name)


def swap_root(new_root: str) -> None:
    """Make ``new_root`` this process's root and let go of the old one.

    Call it in the container's own mount namespace, with propagation already
    private, in a process that is about to exec: root and working directory change
    for every thread. ``new_root`` has to be a mount point.

    Raises:
        OSError: as the kernel says it. EBUSY: ``new_root`` is part of the current
            root mount, so it was never bind-mounted. EINVAL: it is no mount point,
            or it or its parent still propagates mounts.

    Source: pivot_root(2), ERRORS and 'pivot_root(".", ".")' under NOTES.
    """
    old_root = os.open("/", os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(new_root)
        # The old root now lies on top of the new one, at the same path. That
        # saves making a directory for it inside an image we do not own.
        check(_pivot_root(b".", b"."), new_root)
        os.fchdir(old_root)
        unmount(".")
    finally:
        os.close(old_root)
    os.chdir("/")
