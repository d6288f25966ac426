"""Keep unpacked layers: one folder each, named by the digest of its archive, shared by all images.

A folder under its final name is whole and on disk: it was unpacked beside, verified,
written out and renamed. The folders hold set-id programs of strangers, so only root enters.
"""

import asyncio
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from agent.errors import ImageError
from agent.images.files import settle, write_durably
from agent.images.merged import Merged
from agent.images.stacking import (
    Attributes,
    StackedLayer,
    hidden_attributes,
    make_folders,
)
from agent.images.streams import DAMAGE, LayerStream
from agent.images.unpack import unpack
from agent.kernel.syncfs import syncfs
from estiba.kit.threads import whole

MAX_UNPACKING = 2
# What tarfile raises for headers that say what no header should.
MALFORMED = (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError)


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

    def stack(self, diff_ids: Sequence[str]) -> tuple[Path, ...]:
        """Return the folders to stack for these layers, bottom first. Blocks."""
        # overlayfs refuses a folder that it is given twice. Of a layer that comes twice, the upper
        # one decides all that the lower one says.
        topmost = list(dict.fromkeys(reversed(diff_ids)))[::-1]
        layers = [StackedLayer(self.path(one), self._read_implied(one)) for one in topmost]
        paths = tuple(layer.folder for layer in layers)
        lost = hidden_attributes(layers)
        return (*paths, self._folders(lost)) if lost else paths

    def _folders(self, folders: Sequence[Attributes]) -> Path:
        described = json.dumps([(one.path, one.mode, one.uid, one.gid) for one in folders])
        final = self._folder / "folders" / hashlib.sha256(described.encode()).hexdigest()
        if final.is_dir():
            return final
        work = Path(tempfile.mkdtemp(dir=self._work))
        try:
            work.chmod(0o755)
            make_folders(work, folders)
            settle(work, final)
        except OSError:
            # Another image may have needed the same, and was faster.
            if not final.is_dir():
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return final

    def _implied_file(self, diff_id: str) -> Path:
        return self._folder / "implied" / diff_id.replace(":", "-")

    def _write_implied(self, diff_id: str, implied: frozenset[str]) -> None:
        file = self._implied_file(diff_id)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(file, json.dumps(sorted(implied)))

    def _read_implied(self, diff_id: str) -> frozenset[str]:
        try:
            return frozenset(json.loads(self._implied_file(diff_id).read_bytes()))
        except FileNotFoundError:
            return frozenset()

    async def add(self, diff_id: str, blob: Path) -> Path:
        """Unpack the layer from its compressed file, unless it is here already.

        Raises:
            ImageError: it cannot be unpacked, or it is another layer; says which.
        """
        return await self._merged.run(diff_id, lambda: self._add(diff_id, blob))

    async def _add(self, diff_id: str, blob: Path) -> Path:
        async with self._slots:
            stop = threading.Event()
            return await whole(lambda: self._unpack(diff_id, blob, stop), hurry=stop.set)

    def _unpack(self, diff_id: str, blob: Path, stop: threading.Event) -> Path:
        final = self.path(diff_id)
        if final.is_dir():
            return final
        folder = Path(tempfile.mkdtemp(dir=self._work))
        try:
            implied = _fill(folder, diff_id, blob, stop)
            if implied:
                self._write_implied(diff_id, implied)
            settle(folder, final)
        except ImageError as error:
            raise ImageError(f"layer {diff_id}: {error}") from error
        except (*DAMAGE, *MALFORMED) as error:
            raise ImageError(f"layer {diff_id}: cannot be unpacked: {_reason(error)}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return final


def _fill(folder: Path, diff_id: str, blob: Path, stop: threading.Event) -> frozenset[str]:
    """Unpack the archive, and return the folders it does not describe."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # This folder becomes the container's /, which everyone may enter.
        os.fchmod(root, 0o755)
        with LayerStream(blob, diff_id.partition(":")[0], stop) as stream:
            implied = unpack(stream, root)
            found = stream.digest()
        if found != diff_id:
            raise ImageError(f"unpacked, its content has digest {found}")
        syncfs(root)
    finally:
        os.close(root)
    return implied


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).lower() or type(error).__name__
