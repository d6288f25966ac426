"""Lay a layer's tar archive out in a folder, in the form in which overlayfs reads it.

The archive comes from a stranger and we are root. So every name is walked from the
folder's descriptor, one component at a time, and no link is ever followed by the
kernel: a symbolic link in the middle of a path is resolved here, inside the folder,
as if it were the root. Whiteouts become devices 0/0, opaque folders an attribute.
"""

import os
import shutil
import stat
import tarfile
from collections.abc import Sequence

from agent.errors import ImageError
from agent.images.streams import CHUNK_BYTES, UNLIMITED, LayerStream

WHITEOUT_PREFIX = ".wh."
AUFS_PREFIX = ".wh..wh."
OPAQUE_MARKER = ".wh..wh..opq"
OPAQUE_ATTRIBUTE = "trusted.overlay.opaque"
PAX_ATTRIBUTE_PREFIX = "SCHILY.xattr."
READ_BYTES = 256 << 10
MAX_HEADER_BYTES = 4 << 20
MAX_LINKS = 40

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = b"y"

# A path below the layer's folder, without links or dots.
Parts = tuple[str, ...]


def unpack(stream: LayerStream, root: int) -> frozenset[str]:
    """Unpack the archive into the empty folder that ``root`` is a descriptor of.

    Returns the folders that had to be made though the archive has no entry for them;
    their attributes are only guesses, "/" alone never is among them.

    Raises:
        ImageError: the archive is damaged, or does what no layer may; names the entry.
        StoppedError: the work is no longer wanted.
    """
    unpacker = _Unpacker(stream, root)
    try:
        unpacker.run()
    finally:
        unpacker.close()
    return frozenset("/".join(parts) for parts in unpacker.implied)


class _Unpacker:
    def __init__(self, stream: LayerStream, root: int) -> None:
        self._stream = stream
        self._root = root
        # Entries of one folder follow each other, so the last folder stays open.
        self._at: Parts = ()
        self._folder = os.dup(root)
        self._asked: Parts = ()
        self._folder_times: dict[Parts, int] = {}
        self.implied: set[Parts] = set()

    def close(self) -> None:
        os.close(self._folder)

    def run(self) -> None:
        self._stream.allowance = MAX_HEADER_BYTES
        # Read as a stream: tarfile then never seeks, and holds one entry at a time.
        with tarfile.open(fileobj=self._stream, mode="r|", bufsize=READ_BYTES) as archive:
            for entry in archive:
                self._stream.allowance = UNLIMITED
                try:
                    self._place(archive, entry)
                except (OSError, ValueError, OverflowError) as error:
                    reason = error.strerror if isinstance(error, OSError) else None
                    raise ImageError(f"entry {entry.name!r}: {reason or error}") from error
                # tarfile keeps every entry it has read; a layer may have a million.
                vars(archive)["members"].clear()
                self._stream.allowance = MAX_HEADER_BYTES
        self._stamp_folders()

    def _place(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        parts = _parts(entry.name, entry.name)
        if any(part.startswith(AUFS_PREFIX) for part in parts[:-1]):
            return
        if not parts:
            if not entry.isdir():
                raise ImageError(f"entry {entry.name!r} replaces the layer's root")
            self._finish_folder((), self._root, entry)
            return
        name = parts[-1]
        folder = self._enter(parts[:-1], entry.name)
        if name == OPAQUE_MARKER:
            os.setxattr(folder, OPAQUE_ATTRIBUTE, _OPAQUE)
        elif name.startswith(AUFS_PREFIX):
            return
        elif name.startswith(WHITEOUT_PREFIX):
            self._hide(folder, name.removeprefix(WHITEOUT_PREFIX), entry.name)
        else:
            self._create(archive, entry, folder, name)

    def _create(
        self, archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: int, name: str
    ) -> None:
        if entry.isdir():
            self._create_folder(entry, folder, name)
            return
        if entry.islnk():
            self._link(entry, name)
            return
        self._clear(folder, self._at, name)
        if entry.isreg():
            self._write(archive, entry, folder, name)
            return
        if entry.issym():
            os.symlink(entry.linkname, name, dir_fd=folder)
        elif entry.isfifo():
            os.mkfifo(name, 0o600, dir_fd=folder)
        elif entry.ischr() or entry.isblk():
            kind = stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(entry.devmajor, entry.devminor), dir_fd=folder)
        else:
            raise ImageError(f"entry {entry.name!r} is of the unknown type {entry.type!r}")
        os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        if not entry.issym():
            # Follows links, but what stands here was made by us two lines above.
            os.chmod(name, entry.mode & 0o7777, dir_fd=folder)
        os.utime(name, ns=(_ns(entry), _ns(entry)), dir_fd=folder, follow_symlinks=False)

    def _write(
        self, archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: int, name: str
    ) -> None:
        if entry.issparse():
            # A kilobyte of archive could stand for more zeros than any disk holds.
            raise ImageError(f"entry {entry.name!r} is a sparse file, which layers may not have")
        content = archive.extractfile(entry)
        if content is None:
            raise ImageError(f"entry {entry.name!r} has no content")
        with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=folder), "wb") as file:
            shutil.copyfileobj(content, file, CHUNK_BYTES)
            file.flush()
            _set_attributes(file.fileno(), entry)
            os.utime(file.fileno(), ns=(_ns(entry), _ns(entry)))

    def _link(self, entry: tarfile.TarInfo, name: str) -> None:
        target = _parts(entry.linkname, entry.name)
        if not target:
            raise ImageError(f"entry {entry.name!r} links to the layer's root")
        # The second walk closes the folder of the first.
        here, at = os.dup(self._folder), self._at
        try:
            there = self._enter(target[:-1], entry.name, create=False)
            if os.path.samestat(os.fstat(here), os.fstat(there)) and target[-1] == name:
                raise ImageError(f"entry {entry.name!r} links to itself")
            self._clear(here, at, name)
            os.link(target[-1], name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        except FileNotFoundError as error:
            missing = f"entry {entry.name!r} links to {entry.linkname!r}, which is not in the layer"
            raise ImageError(missing) from error
        finally:
            os.close(here)

    def _create_folder(self, entry: tarfile.TarInfo, folder: int, name: str) -> None:
        found = _look(folder, name)
        if found is None or not stat.S_ISDIR(found.st_mode):
            self._clear(folder, self._at, name)
            os.mkdir(name, 0o700, dir_fd=folder)
        made = os.open(name, _FOLDER, dir_fd=folder)
        try:
            if found is not None and _is_whiteout(found):
                os.setxattr(made, OPAQUE_ATTRIBUTE, _OPAQUE)
            self._finish_folder((*self._at, name), made, entry)
        finally:
            os.close(made)

    def _finish_folder(self, parts: Parts, descriptor: int, entry: tarfile.TarInfo) -> None:
        _set_attributes(descriptor, entry)
        # What is still to come into it would change its time, so that is set last.
        self._folder_times[parts] = _ns(entry)
        self.implied.discard(parts)

    def _hide(self, folder: int, name: str, entry_name: str) -> None:
        """Hide what lower layers have under ``name``. What this layer has stays."""
        if name in ("", ".", ".."):
            raise ImageError(f"entry {entry_name!r} hides nothing that has a name")
        found = _look(folder, name)
        if found is None:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=folder)
        elif stat.S_ISDIR(found.st_mode):
            kept = os.open(name, _FOLDER, dir_fd=folder)
            try:
                os.setxattr(kept, OPAQUE_ATTRIBUTE, _OPAQUE)
            finally:
                os.close(kept)

    def _clear(self, folder: int, at: Parts, name: str) -> None:
        """Make room for a later entry of the same name, which replaces an earlier one."""
        found = _look(folder, name)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(name, dir_fd=folder)
            gone = (*at, name)
            self.implied = {parts for parts in self.implied if parts[: len(gone)] != gone}
        else:
            os.unlink(name, dir_fd=folder)
        # The open folder may have been reached through what is gone.
        self._asked = ()

    def _move(self, folder: int, at: Parts) -> None:
        os.close(self._folder)
        self._folder, self._at = folder, at

    def _enter(self, parts: Sequence[str], entry_name: str, *, create: bool = True) -> int:
        """Open the folder at ``parts``; it stays open until the next call.

        Symbolic links on the way lead on inside the layer, however they are written.
        """
        asked = tuple(parts)
        if asked and asked == self._asked:
            return self._folder
        self._asked = ()
        self._move(os.dup(self._root), ())
        pending = list(reversed(parts))
        links = 0
        while pending:
            name = pending.pop()
            if name == "..":
                pending.extend(reversed(self._at[:-1]))
                self._move(os.dup(self._root), ())
                continue
            link = self._step(name, entry_name, create=create)
            if link is None:
                continue
            links += 1
            if links > MAX_LINKS:
                raise ImageError(f"entry {entry_name!r} lies behind too many symbolic links")
            pending.extend(part for part in reversed(link.split("/")) if part not in ("", "."))
            if link.startswith("/"):
                self._move(os.dup(self._root), ())
        self._asked = asked
        return self._folder

    def _step(self, name: str, entry_name: str, *, create: bool) -> str | None:
        """Go one folder down, making it if need be; or return the link that stands there."""
        found = _look(self._folder, name)
        if found is not None and stat.S_ISLNK(found.st_mode):
            return os.readlink(name, dir_fd=self._folder)
        hidden = found is not None and _is_whiteout(found)
        if (found is None or hidden) and create:
            if hidden:
                os.unlink(name, dir_fd=self._folder)
            os.mkdir(name, 0o755, dir_fd=self._folder)
            self.implied.add((*self._at, name))
        elif found is not None and not stat.S_ISDIR(found.st_mode):
            raise ImageError(f"entry {entry_name!r} lies below {name!r}, which is not a folder")
        below = os.open(name, _FOLDER, dir_fd=self._folder)
        if hidden:
            os.setxattr(below, OPAQUE_ATTRIBUTE, _OPAQUE)
        self._move(below, (*self._at, name))
        return None

    def _stamp_folders(self) -> None:
        for parts, time_ns in self._folder_times.items():
            try:
                folder = self._enter(parts, "/".join(parts), create=False)
            except (FileNotFoundError, ImageError):
                continue  # a later entry replaced it
            if self._at == parts:
                os.utime(folder, ns=(time_ns, time_ns))


def _parts(path: str, entry_name: str) -> Parts:
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ImageError(f"entry {entry_name!r} leads out of the layer")
    return parts


def _look(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _ns(entry: tarfile.TarInfo) -> int:
    return int(entry.mtime * 1_000_000_000)


def _set_attributes(descriptor: int, entry: tarfile.TarInfo) -> None:
    # In this order: a change of owner clears set-id bits and capabilities.
    os.fchown(descriptor, entry.uid, entry.gid)
    os.fchmod(descriptor, entry.mode & 0o7777)
    for key, text in entry.pax_headers.items():
        name = key.removeprefix(PAX_ATTRIBUTE_PREFIX)
        # Nothing else: trusted.overlay.* from a stranger would redirect the mount.
        if name != key and name == "security.capability":
            os.setxattr(descriptor, name, text.encode("utf-8", "surrogateescape"))
