"""Give folders back the attributes they have lower in the stack.

Some tools make layers that hold ``home/app/file`` and no entry for ``home/app``. Unpacked
by itself, such a layer has to make the folder up, and in an overlay the topmost folder's
owner and mode count: the real ones below would be hidden. So one more layer of bare
folders goes on top, with the attributes from where an archive did describe them.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.images.unpack import OPAQUE_ATTRIBUTE


@dataclass(frozen=True, slots=True)
class StackedLayer:
    """An unpacked layer, and its folders that no archive described."""

    folder: Path
    implied: frozenset[str]


@dataclass(frozen=True, slots=True, order=True)
class Attributes:
    path: str
    mode: int
    uid: int
    gid: int


def hidden_attributes(layers: Sequence[StackedLayer]) -> list[Attributes]:
    """Return the folders to put on top of these layers (bottom first), parents first.

    Empty if every folder that can be seen shows what an archive says of it.
    """
    wrong: set[str] = set()
    for path in sorted({path for layer in layers for path in layer.implied}):
        shown, meant = _seen(layers, path)
        if meant is not None and shown != meant:
            # The folders above it come along, and must not hide theirs either.
            wrong |= {path, *_parents(path)}
    found = []
    for path in sorted(wrong):
        shown, meant = _seen(layers, path)
        attributes = meant or shown
        if attributes is not None:
            found.append(attributes)
    return found


def make_folders(root: Path, folders: Iterable[Attributes]) -> None:
    """Make them below ``root``, which is empty, and ours alone. Blocks."""
    for one in folders:
        path = root / one.path
        path.mkdir()
        os.chown(path, one.uid, one.gid)
        path.chmod(one.mode)


def _seen(layers: Sequence[StackedLayer], path: str) -> tuple[Attributes | None, Attributes | None]:
    """Return what the topmost folder at ``path`` shows, and what the topmost described one says.

    Looks down from the top as overlayfs does, until something hides what is below.
    """
    shown: Attributes | None = None
    for layer in reversed(layers):
        found, hides = _look(layer.folder, path)
        if found is not None:
            here = Attributes(path, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
            shown = shown or here
            if path not in layer.implied:
                return shown, here
        if hides:
            break
    return shown, None


def _look(root: Path, path: str) -> tuple[os.stat_result | None, bool]:
    """Return the folder at ``path`` in one layer, and whether this layer hides lower ones there."""
    found: os.stat_result | None = None
    hides = False
    at = root
    for name in path.split("/"):
        at /= name
        try:
            found = at.lstat()
        except FileNotFoundError:
            return None, hides
        if not stat.S_ISDIR(found.st_mode):
            return None, True
        hides = hides or OPAQUE_ATTRIBUTE in os.listxattr(at)
    return found, hides


def _parents(path: str) -> Iterable[str]:
    return (str(parent) for parent in Path(path).parents if parent != Path())
