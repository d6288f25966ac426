"""Keep downloaded content in files named by their digests; nothing unverified has such a name.

A download goes to a file beside, hashed as it comes. A broken one goes on where it broke,
now or at the next attempt; one whose digest is wrong is thrown away.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from agent.errors import ImageError
from agent.images.files import settle
from agent.images.manifest import Descriptor
from agent.images.merged import Merged
from agent.images.registry import Body
from agent.images.transport import UnansweredError
from estiba.kit.backoff import Backoff

ATTEMPTS = 4
BUFFER_BYTES = 1 << 20
KEEP_PARTIAL_S = 24 * 3600.0


class Source(Protocol):
    """Opens content at an offset."""

    def __call__(self, digest: str, offset: int) -> AbstractAsyncContextManager[Body]: ...


class ContentStore:
    """``folder`` holds what is whole, ``work``, on the same file system, what is under way."""

    def __init__(self, folder: Path, work: Path, *, random: Callable[[], float]) -> None:
        self._folder = folder
        self._work = work
        self._random = random
        self._merged: Merged[str, Path] = Merged()

    def prepare(self) -> None:
        """Make the folders, and drop downloads that nobody went on with for a day. Blocks."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        for partial in self._work.iterdir():
            if time.time() - partial.stat().st_mtime > KEEP_PARTIAL_S:
                partial.unlink()

    def path(self, digest: str) -> Path:
        algorithm, _, name = digest.partition(":")
        return self._folder / algorithm / name

    def read(self, digest: str) -> bytes | None:
        """Return small content that is here, or nothing. Content damaged on disk is not here."""
        try:
            content = self.path(digest).read_bytes()
        except FileNotFoundError:
            return None
        algorithm, _, name = digest.partition(":")
        return content if hashlib.new(algorithm, content).hexdigest() == name else None

    def add(self, digest: str, content: bytes) -> None:
        """Keep small content that was fetched. Blocks.

        Raises:
            ImageError: it is not what its digest promises.
        """
        download = _Download(self._work, Descriptor("", digest, len(content)))
        try:
            download.restart()
            download.write(content)
            download.finish(self.path(digest))
        finally:
            download.close()

    def forget(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    async def fetch(
        self, wanted: Descriptor, source: Source, received: Callable[[int], None]
    ) -> Path:
        """Return the file with this content, downloading it if it is not here.

        ``received`` is called with every number of bytes that arrived.

        Raises:
            UnansweredError: the registry does not answer, in several attempts.
            ImageError: the content is not what its digest promises.
        """
        return await self._merged.run(wanted.digest, lambda: self._fetch(wanted, source, received))

    async def _fetch(
        self, wanted: Descriptor, source: Source, received: Callable[[int], None]
    ) -> Path:
        final = self.path(wanted.digest)
        if final.is_file():
            return final
        download = await asyncio.to_thread(_Download, self._work, wanted)
        try:
            received(download.size)
            await self._receive(download, source, received)
            await asyncio.to_thread(download.finish, final)
        finally:
            download.close()
        return final

    async def _receive(
        self, download: "_Download", source: Source, received: Callable[[int], None]
    ) -> None:
        backoff = Backoff(first_s=0.2, most_s=2.0, random=self._random)
        failures = 0
        while not download.whole:
            before = download.size
            try:
                async with source(download.wanted.digest, before) as body:
                    await download.append(body, received)
            except UnansweredError:
                # A slow, breaking line still gets there; only failures in a row count.
                failures = 1 if download.size > before else failures + 1
                if failures == ATTEMPTS:
                    raise
                await asyncio.sleep(backoff.next_s())


class _Download:
    """One file under way. Making it hashes what an earlier attempt left; blocks."""

    def __init__(self, work: Path, wanted: Descriptor) -> None:
        self.wanted = wanted
        algorithm, _, name = wanted.digest.partition(":")
        self._path = work / f"{algorithm}-{name}"
        self._algorithm = algorithm
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: BinaryIO = os.fdopen(os.open(self._path, flags, 0o600), "r+b")
        self._hash = hashlib.new(algorithm)
        self.size = 0
        while chunk := self._file.read(BUFFER_BYTES):
            self._hash.update(chunk)
            self.size += len(chunk)
        if self.size > wanted.size:
            self.restart()

    @property
    def whole(self) -> bool:
        return self.size >= self.wanted.size

    async def append(self, body: Body, received: Callable[[int], None]) -> None:
        """Write what arrives, hashing it, in a thread and a mebibyte at a time."""
        if body.offset != self.size:
            received(-self.size)
            await asyncio.to_thread(self.restart)
        waiting = bytearray()
        try:
            async for chunk in body.chunks:
                waiting += chunk
                if self.size + len(waiting) > self.wanted.size:
                    raise ImageError(
                        f"{self.wanted.digest}: longer than the {self.wanted.size} bytes promised"
                    )
                received(len(chunk))
                if len(waiting) >= BUFFER_BYTES:
                    full, waiting = waiting, bytearray()
                    await asyncio.to_thread(self.write, full)
        finally:
            self.write(waiting)
        if not self.whole:
            raise UnansweredError("the registry ended the download early")

    def finish(self, final: Path) -> None:
        """Verify, write out, and give the file its name. Blocks."""
        digest = f"{self._algorithm}:{self._hash.hexdigest()}"
        if digest != self.wanted.digest:
            self._path.unlink()
            raise ImageError(f"{self.wanted.digest}: content has digest {digest}")
        self._file.flush()
        os.fsync(self._file.fileno())
        settle(self._path, final)

    def close(self) -> None:
        self._file.close()

    def write(self, chunk: bytes | bytearray) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.new(self._algorithm)
        self.size = 0
