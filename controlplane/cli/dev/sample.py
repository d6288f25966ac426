"""Make a small image out of busybox and push it to a registry.

Its default command is an HTTP server on port 8080 whose page says on which host it runs.
``python -m controlplane.cli.dev.sample --registry HOST:PORT --ca FILE`` pushes it.
"""

import argparse
import asyncio
import gzip
import hashlib
import io
import json
import platform
import ssl
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from yarl import URL

BUSYBOX = Path("/bin/busybox")
PORT = 8080
REGISTRY_SERVER_NAME = "registry.estiba"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TIMEOUT_S = 60.0

# The kernel ignores SIGTERM for a pid 1 that does not handle it, hence the trap.
SERVE = f"""\
#!/bin/sh
trap 'exit 0' TERM INT
httpd -f -p {PORT} -h /www &
wait
"""
# httpd runs this where a folder has no index.html.
PAGE = """\
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
printf 'hello from %s, you asked for %s\\n' "$(hostname)" "$REQUEST_URI"
"""
USERS = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"
GROUPS = "root:x:0:\napp:x:1000:\n"


class PushError(Exception):
    """The image cannot be made, or the registry did not take it; says which."""


@dataclass(frozen=True, slots=True)
class Blob:
    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.content)}


@dataclass(frozen=True, slots=True)
class Sample:
    """An image: its manifest, and the blobs it refers to."""

    manifest: Blob
    blobs: tuple[Blob, ...]


def build_sample() -> Sample:
    """Make the image. The same busybox always gives the same digest."""
    tars = (_busybox_layer(), _page_layer())
    layers = tuple(Blob(LAYER_TYPE, gzip.compress(tar, 6, mtime=0)) for tar in tars)
    machine = platform.machine()
    config = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {
            "Cmd": ["serve"],
            "Env": ["PATH=/bin"],
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.title": "A page that says where it runs"},
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars],
        },
    }
    config_blob = Blob(CONFIG_TYPE, json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config_blob.descriptor(),
        "layers": [layer.descriptor() for layer in layers],
    }
    return Sample(Blob(MANIFEST_TYPE, json.dumps(manifest).encode()), (config_blob, *layers))


async def push_sample(
    address: str,
    ca: Path,
    name: str = "hello",
    tag: str = "latest",
    *,
    server_name: str = REGISTRY_SERVER_NAME,
) -> str:
    """Push the image to the registry at HOST:PORT, and return its digest.

    Args:
        ca: the authority that signed the registry's certificate.
        server_name: the name in that certificate, which the address need not be.

    Raises:
        PushError: busybox is not here, or the registry does not take the image.
    """
    sample = await asyncio.to_thread(build_sample)
    trust = ssl.create_default_context(cafile=str(ca))
    root = URL(f"https://{address}/v2/")
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            push = _Push(session, root / name, trust, server_name)
            for blob in sample.blobs:
                await push.blob(blob)
            await push.manifest(tag, sample.manifest)
    except (aiohttp.ClientError, OSError) as error:
        raise PushError(f"registry {address}: {error}") from error
    return sample.manifest.digest


class _Push:
    """One repository of a registry, written to."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        repository: URL,
        trust: ssl.SSLContext,
        server_name: str,
    ) -> None:
        self._session = session
        self._repository = repository
        self._trust = trust
        self._server_name = server_name

    async def blob(self, blob: Blob) -> None:
        if await self._send("HEAD", self._repository / "blobs" / blob.digest, (200, 404)) == 200:
            return
        uploads = self._repository / "blobs" / "uploads" / ""
        async with self._session.post(
            uploads, ssl=self._trust, server_hostname=self._server_name
        ) as response:
            if response.status != 202:
                raise PushError(f"POST {uploads.path}: {response.status} {response.reason}")
            # The registry may name itself here; what was dialled is sure to work.
            place = uploads.join(URL(response.headers["Location"]))
            place = place.with_host(uploads.host or "").with_port(uploads.port)
        await self._send("PUT", place.update_query(digest=blob.digest), (201,), blob)

    async def manifest(self, tag: str, manifest: Blob) -> None:
        await self._send("PUT", self._repository / "manifests" / tag, (201,), manifest)

    async def _send(
        self, method: str, url: URL, good: tuple[int, ...], blob: Blob | None = None
    ) -> int:
        async with self._session.request(
            method,
            url,
            data=io.BytesIO(blob.content) if blob else None,
            headers={"Content-Type": blob.media_type} if blob else {},
            ssl=self._trust,
            server_hostname=self._server_name,
        ) as response:
            if response.status not in good:
                raise PushError(f"{method} {url.path}: {response.status} {response.reason}")
            return response.status


def _busybox_layer() -> bytes:
    if not BUSYBOX.is_file():
        raise PushError(f"{BUSYBOX} is not there: install busybox-static")
    listed = subprocess.run(
        [str(BUSYBOX), "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    layer = _Layer()
    for folder in ("bin", "dev", "etc", "home", "proc", "root", "sys", "var"):
        layer.folder(folder, 0o755)
    layer.folder("tmp", 0o1777)
    layer.folder("home/app", 0o755, owner=1000)
    layer.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    for applet in sorted(set(listed) - {"busybox"}):
        layer.link(f"bin/{applet}", "busybox")
    layer.file("etc/passwd", USERS.encode(), 0o644)
    layer.file("etc/group", GROUPS.encode(), 0o644)
    return layer.archive()


def _page_layer() -> bytes:
    layer = _Layer()
    layer.folder("bin", 0o755)
    layer.file("bin/serve", SERVE.encode(), 0o755)
    layer.folder("www", 0o755)
    layer.folder("www/cgi-bin", 0o755)
    layer.file("www/cgi-bin/index.cgi", PAGE.encode(), 0o755)
    return layer.archive()


class _Layer:
    """A layer's entries. Without times, so that the same content is the same layer."""

    def __init__(self) -> None:
        self._entries: list[tuple[tarfile.TarInfo, bytes]] = []

    def folder(self, name: str, mode: int, *, owner: int = 0) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        entry.uid = entry.gid = owner
        self._entries.append((entry, b""))

    def file(self, name: str, content: bytes, mode: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.mode, entry.size = mode, len(content)
        self._entries.append((entry, content))

    def link(self, name: str, target: str) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, target
        self._entries.append((entry, b""))

    def archive(self) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for entry, content in self._entries:
                tar.addfile(entry, io.BytesIO(content))
        return packed.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description="Push the sample image to a registry.")
    parser.add_argument("--registry", required=True, metavar="HOST:PORT")
    parser.add_argument("--ca", required=True, type=Path, metavar="FILE")
    parser.add_argument("--name", default="hello")
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--server-name", default=REGISTRY_SERVER_NAME)
    chosen = parser.parse_args()
    try:
        digest = asyncio.run(
            push_sample(
                chosen.registry,
                chosen.ca,
                chosen.name,
                chosen.tag,
                server_name=chosen.server_name,
            )
        )
    except PushError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
