"""Read a layer as the tar archive it is, whatever compressed it, and hash it on the way."""

import gzip
import hashlib
import io
import sys
import threading
import zlib
from pathlib import Path

from agent.errors import ImageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# What reading a damaged layer may raise.
DAMAGE = (OSError, EOFError, zlib.error, zstd.ZstdError)
UNLIMITED = sys.maxsize
CHUNK_BYTES = 1 << 20


class StoppedError(Exception):
    """Whoever asked for this work no longer wants it."""


class LayerStream(io.BufferedIOBase):
    """A layer's tar archive, from its compressed file. Knows gzip, zstd, and no compression.

    Set ``allowance`` before reading what a stranger gave the length of: reading more
    than that many bytes is an error, so a header cannot fill the memory.
    """

    def __init__(self, blob: Path, algorithm: str, stop: threading.Event) -> None:
        super().__init__()
        self._file = blob.open("rb")
        self._tar = _decompressed(self._file)
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm
        self._stop = stop
        self.allowance = UNLIMITED

    def close(self) -> None:
        self._tar.close()
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes of the archive, none at its end.

        Raises:
            StoppedError: the work is no longer wanted.
            ImageError: more was read than allowed.
            OSError, EOFError, zstd.ZstdError: the compressed file is damaged.
        """
        if self._stop.is_set():
            raise StoppedError
        chunk = self._tar.read(size)
        self.allowance -= len(chunk)
        if self.allowance < 0:
            raise ImageError("a header in it is too large")
        self._hash.update(chunk)
        return chunk

    def digest(self) -> str:
        """Read what is left, and return the digest of all of it."""
        self.allowance = UNLIMITED
        while self.read(CHUNK_BYTES):
            pass
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def _decompressed(file: io.BufferedReader) -> io.BufferedIOBase:
    # By what it is, not by what the manifest calls it: some tools name it wrongly.
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(GZIP_MAGIC):
        return gzip.GzipFile(fileobj=file)
    if magic == ZSTD_MAGIC:
        return zstd.ZstdFile(file)
    return file
