"""Make a container's root: overlay, mounts, devices, masks, then step into it.

Runs in the sandbox child, in its own mount namespace, before any process of the
container exists. An image is not trusted: every mount target below the root is
opened so that no link of the image leads out of it, and mounts are attached to the
descriptor.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.kernel import mounts
from agent.kernel.files import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    open_beneath,
)
from agent.runtime.bundle import Bundle, MountRequest
from agent.runtime.errors import ContainerError

_ATTRIBUTES = {
    "ro": mounts.ATTR_RDONLY,
    "nosuid": mounts.ATTR_NOSUID,
    "nodev": mounts.ATTR_NODEV,
    "noexec": mounts.ATTR_NOEXEC,
    "noatime": mounts.ATTR_NOATIME,
    "strictatime": mounts.ATTR_STRICTATIME,
}
_IGNORED_OPTIONS = {"rw", "relatime", "bind", "rbind", "private", "rprivate"}

_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


def enter_root(bundle: Bundle, cgroups: Sequence[tuple[str, Path]]) -> None:
    """Build the root that ``bundle`` asks for and make it this process's root.

    Args:
        cgroups: what to show below /sys/fs/cgroup, as `Cgroups.binds` returns it.

    Raises:
        ContainerError: with the stage "root".
        OSError: as the kernel says it.
    """
    mounts.set_propagation("/", mounts.MS_PRIVATE)
    _mount_overlay(bundle)
    root = os.open(bundle.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for request in bundle.mounts:
        _mount(root, request, cgroups)
        if request.destination == "/dev":
            _populate_devices(root)
    _mask(root, bundle.masked_paths)
    for path in bundle.read_only_paths:
        _make_read_only(root, path)
    os.close(root)
    mounts.swap_root(str(bundle.root))


def _mount_overlay(bundle: Bundle) -> None:
    """Mount the layers with a fresh upper folder on top.

    Layers are named by descriptors: a mount's options must fit on one page, and a
    colon in a path would end it. ``volatile`` leaves out the sync at the end of the
    container's life; the kernel refuses to mount such an upper folder twice, and the
    launcher makes one for every container.

    Source: Linux filesystems/overlayfs, "Multiple lower layers" and "Volatile mount".
    """
    opened = [
        os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for layer in (*reversed(bundle.layers), str(bundle.upper), str(bundle.work))
    ]
    *lower, upper, work = (f"/proc/self/fd/{descriptor}" for descriptor in opened)
    options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}"
    # An image is not to say where its own folders are to be found: nofollow.
    options += ",volatile,redirect_dir=nofollow"
    if len(options) >= os.sysconf("SC_PAGE_SIZE"):
        raise ContainerError("root", f"the image has {len(lower)} layers, more than can be mounted")
    mounts.mount("overlay", "overlay", str(bundle.root), 0, options)
    for descriptor in opened:
        os.close(descriptor)


def _mount(root: int, request: MountRequest, cgroups: Sequence[tuple[str, Path]]) -> None:
    attributes = 0
    options = []
    for option in request.options:
        if option in _ATTRIBUTES:
            attributes |= _ATTRIBUTES[option]
        elif option not in _IGNORED_OPTIONS:
            options.append(option)
    if request.kind == "bind":
        _bind(root, request, attributes)
        return
    if request.kind == "cgroup":
        _mount_cgroups(root, request.destination, cgroups, attributes)
        return
    target = _own_folder(root, request.destination)
    tree = mounts.new_filesystem(request.kind, tuple(options), attributes)
    mounts.attach(tree, target, request.destination)
    os.close(tree)
    os.close(target)


def _bind(root: int, request: MountRequest, attributes: int) -> None:
    tree = mounts.clone_tree(request.source, recursive="rbind" in request.options)
    if attributes:
        mounts.set_attributes(tree, attributes)
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        target = make_folder(root, request.destination)
    else:
        target = _make_file(root, request.destination)
    mounts.attach(tree, target, request.destination)
    os.close(tree)
    os.close(target)


def _mount_cgroups(
    root: int, destination: str, cgroups: Sequence[tuple[str, Path]], attributes: int
) -> None:
    """Show the container its own cgroup, under the paths where programs look for limits.

    It is bound, not mounted, since the cgroup namespace begins only once the child
    has entered the cgroup, which is the last thing it does.
    """
    target = _own_folder(root, destination)
    if [name for name, _ in cgroups] != [""]:
        shelf = mounts.new_filesystem("tmpfs", ("mode=755", "size=64k"), 0)
        for name, _ in cgroups:
            os.mkdir(name, dir_fd=shelf)
        mounts.set_attributes(shelf, attributes)
        mounts.attach(shelf, target, destination)
        os.close(shelf)
    os.close(target)
    for name, folder in cgroups:
        target = _own_folder(root, f"{destination}/{name}")
        tree = mounts.clone_tree(str(folder))
        mounts.set_attributes(tree, attributes)
        mounts.attach(tree, target, f"{destination}/{name}")
        os.close(tree)
        os.close(target)


def _populate_devices(root: int) -> None:
    """Put nodes and links into the fresh filesystem at /dev. The file mask must be 0."""
    folder = _own_folder(root, "/dev")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=folder)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, name, dir_fd=folder)
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(name, 0o755, dir_fd=folder)
    os.close(folder)


def _mask(root: int, paths: Sequence[str]) -> None:
    """Hide paths: folders under one empty read-only folder, files under the null device."""
    attributes = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
    null = open_beneath(root, "dev/null", os.O_PATH, resolve=RESOLVE_NO_SYMLINKS)
    empty: int | None = None
    for path in paths:
        target = _existing(root, path)
        if target is None:
            continue
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            tree = mounts.clone_tree("", at=null)
        elif empty is None:
            # Attached itself, not a copy: to close a filesystem that was never mounted may wait
            # for all processors, which after idleness takes milliseconds.
            tree = empty = mounts.new_filesystem("tmpfs", ("mode=755", "size=4k"), attributes)
        else:
            tree = mounts.clone_tree("", at=empty)
        mounts.attach(tree, target, path)
        os.close(target)
        if tree != empty:
            os.close(tree)
    os.close(null)
    if empty is not None:
        os.close(empty)


def _make_read_only(root: int, path: str) -> None:
    target = _existing(root, path)
    if target is None:
        return
    tree = mounts.clone_tree("", at=target, recursive=True)
    mounts.set_attributes(tree, mounts.ATTR_RDONLY)
    mounts.attach(tree, target, path)
    os.close(tree)
    os.close(target)


def _existing(root: int, path: str) -> int | None:
    """Open a path of the kernel's filesystems, None if this kernel does not have it."""
    try:
        return open_beneath(root, path, os.O_PATH, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _own_folder(root: int, path: str) -> int:
    """Open or make a folder that the runtime mounts on, which must be none of the image's links.

    Else an image could have /proc mounted elsewhere, and look at another folder of
    its own making.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
    try:
        return open_beneath(root, path, flags, resolve=resolve)
    except FileNotFoundError:
        os.close(make_folder(root, path))
        return open_beneath(root, path, flags, resolve=resolve)
    except OSError as error:
        raise ContainerError("root", f"the image's {path} is not a folder") from error


def make_folder(root: int, path: str) -> int:
    """Return a descriptor of a folder below ``root``, made with its parents where absent."""
    folder = os.dup(root)
    done = ""
    for name in path.strip("/").split("/"):
        done = f"{done}/{name}"
        flags = os.O_PATH | os.O_DIRECTORY
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        try:
            below = open_beneath(root, done, flags, resolve=resolve)
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=folder)
            below = open_beneath(root, done, flags, resolve=resolve)
        os.close(folder)
        folder = below
    return folder


def _make_file(root: int, path: str) -> int:
    """Return a descriptor of a file below ``root``, made empty with its parents where absent.

    A link of the image that leads nowhere is replaced by a file.
    """
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    try:
        return open_beneath(root, path, os.O_PATH, resolve=resolve)
    except FileNotFoundError:
        parent, _, name = path.rpartition("/")
        folder = make_folder(root, parent)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(open_beneath(folder, name, flags, resolve=resolve, mode=0o644))
        os.close(folder)
        return open_beneath(root, path, os.O_PATH, resolve=resolve)
