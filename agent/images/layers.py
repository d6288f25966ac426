"""Keep unpacked layers: one folder each, named by the digest of its archive, shared by all images.

A folder under its final name is whole and on disk: it was unpacked beside, verified,
written out and renamed. The folders hold set-id programs of strangers, so only root enters.
"""

import asyncio
import os
import shutil
import tarfile
import tempfile
import threading
from pathlib import Path

from agent.errors import ImageError
from agent.images.merged import Merged
from agent.images.streams import DAMAGE, LayerStream
from agent.images.unpack import unpack
from agent.kernel.syncfs import syncfs

MAX_UNPACKING = 2


class Layers:
    """``folder`` holds the layers; ``work``, on the same file system, what is under way."""

    def __init__(self, folder: Path, work: Path) -> None:
        self._folder = folder
        self._work = work
        self._merged: Merged[str, Path] = Merged()
        self._slots = asyncio.Semaphore(MAX_UNPACKING)

    def prepare(self) -> None:
        """Make the folders, and remove what a crash left half-unpacked. Blocks."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(mode=0o700, parents=True)

    def path(self, diff_id: str) -> Path:
        algorithm, _, name = diff_id.partition(":")
        return self._folder / algorithm / name

    def has(self, diff_id: str) -> bool:
        return self.path(diff_id).is_dir()

    async def add(self, diff_id: str, blob: Path) -> Path:
        """Unpack the layer from its compressed file, unless it is here already.

        Raises:
            ImageError: it cannot be unpacked, or it is another layer; says which.
        """
        return await self._merged.run(diff_id, lambda: self._add(diff_id, blob))

    async def _add(self, diff_id: str, blob: Path) -> Path:
        async with self._slots:
            stop = threading.Event()
            thread = asyncio.get_running_loop().run_in_executor(
                None, self._unpack, diff_id, blob, stop
            )
            try:
                return await asyncio.shield(thread)
            except asyncio.CancelledError:
                # A thread cannot be cancelled: it is told, and cleans up after itself.
                stop.set()
                await asyncio.wait([thread])
                raise

    def _unpack(self, diff_id: str, blob: Path, stop: threading.Event) -> Path:
        final = self.path(diff_id)
        if final.is_dir():
            return final
        folder = Path(tempfile.mkdtemp(dir=self._work))
        try:
            _fill(folder, diff_id, blob, stop)
            final.parent.mkdir(mode=0o700, exist_ok=True)
            folder.rename(final)
            sync_folder(final.parent)
        except ImageError as error:
            raise ImageError(f"layer {diff_id}: {error}") from error
        except (*DAMAGE, tarfile.TarError, RecursionError) as error:
            raise ImageError(f"layer {diff_id}: cannot be unpacked: {_reason(error)}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return final


def _fill(folder: Path, diff_id: str, blob: Path, stop: threading.Event) -> None:
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # This folder becomes the container's /, which everyone may enter.
        os.fchmod(root, 0o755)
        with LayerStream(blob, diff_id.partition(":")[0], stop) as stream:
            unpack(stream, root)
            found = stream.digest()
        if found != diff_id:
            raise ImageError(f"unpacked, its content has digest {found}")
        syncfs(root)
    finally:
        os.close(root)


def sync_folder(folder: Path) -> None:
    """Return when the names in this folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).lower() or type(error).__name__
