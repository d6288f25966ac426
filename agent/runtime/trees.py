"""Remove what containers have written, however deep they have nested it."""

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def remove_trees(folders: Iterable[Path]) -> None:
    """Remove folders with all that is below them; what is absent is no error."""
    for folder in folders:
        with suppress(FileNotFoundError):
            remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder; follow no link.

    Folders below it are moved to its top before they are emptied, so neither a path
    nor the stack grows with the depth, which a container chooses.
    """
    token = os.urandom(16).hex()
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Names that the container cannot have taken.
        names = (f"{token}.{number}" for number in itertools.count())
        found = _empty(top, top, names)
        while found:
            name = found.pop()
            inner = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top
            )
            try:
                found += _empty(inner, top, names)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    folder.rmdir()


def _empty(folder: int, top: int, names: Iterator[str]) -> list[str]:
    """Unlink the files of a folder, move its folders to ``top``, return their names there."""
    moved = []
    with os.scandir(folder) as entries:
        known = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in known:
        if is_folder:
            new_name = next(names)
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=top)
            moved.append(new_name)
        else:
            os.unlink(name, dir_fd=folder)
    return moved
