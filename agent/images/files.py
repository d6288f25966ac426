"""Put files and names on disk so that a crash leaves the old or the new, whole."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Return when the names in this folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(made: Path, final: Path) -> None:
    """Give what was made, and is on disk, its final name. The folder above is made if absent."""
    final.parent.mkdir(mode=0o700, exist_ok=True)
    made.rename(final)
    sync_folder(final.parent)


def write_durably(path: Path, text: str) -> None:
    """Write a small file, replacing what has its name. One writer at a time."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    settle(fresh, path)
