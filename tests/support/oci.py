"""Images for tests: layers entry by entry, manifests, manifest lists, pushed to a real registry."""

import gzip
import hashlib
import io
import json
import ssl
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from backports import zstd
from yarl import URL

from tests.support.registry import RunningRegistry

OCI = "application/vnd.oci.image"
MANIFEST = f"{OCI}.manifest.v1+json"
INDEX = f"{OCI}.index.v1+json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a layer's archive."""

    info: tarfile.TarInfo
    content: bytes = b""


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> Entry:
    """Make any entry; ``content`` and every field of TarInfo may be given."""
    content: bytes = fields.pop("content", b"")
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), 0o644
    for field_name, value in fields.items():
        setattr(info, field_name, value)
    return Entry(info, content)


def file(name: str, content: bytes = b"", **fields: Any) -> Entry:
    return entry(name, content=content, **fields)


def folder(name: str, **fields: Any) -> Entry:
    return entry(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str, **fields: Any) -> Entry:
    return entry(name, tarfile.SYMTYPE, linkname=target, **{"mode": 0o777, **fields})


def hardlink(name: str, target: str) -> Entry:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def whiteout(name: str) -> Entry:
    """Hide what lower layers have under this name."""
    parent, slash, base = name.rpartition("/")
    return entry(f"{parent}{slash}.wh.{base}")


def opaque(name: str) -> Entry:
    """Hide all that lower layers have in this folder."""
    return entry(f"{name}/.wh..wh..opq")


def archive(*entries: Entry) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one in entries:
            tar.addfile(one.info, io.BytesIO(one.content))
    return packed.getvalue()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Blob:
    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.content)

    def descriptor(self, **more: object) -> dict[str, object]:
        promised = {"mediaType": self.media_type, "digest": self.digest}
        return {**promised, "size": len(self.content), **more}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's archive and how it is compressed: gzip, zstd, or none."""

    tar: bytes
    compression: str = "gzip"

    @property
    def diff_id(self) -> str:
        return digest_of(self.tar)

    def blob(self) -> Blob:
        media_type = f"{OCI}.layer.v1.tar"
        if self.compression == "gzip":
            return Blob(f"{media_type}+gzip", gzip.compress(self.tar, 1, mtime=0))
        if self.compression == "zstd":
            return Blob(f"{media_type}+zstd", zstd.compress(self.tar))
        return Blob(media_type, self.tar)


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image or a list of images: a manifest, blobs, and the manifests it refers to."""

    manifest: Blob
    blobs: tuple[Blob, ...] = ()
    below: tuple["BuiltImage", ...] = field(default=())


def layer(*entries: Entry, compression: str = "gzip") -> Layer:
    return Layer(archive(*entries), compression)


def image(
    *layers: Layer,
    config: Mapping[str, object] | None = None,
    platform: str = "linux/amd64",
    diff_ids: Sequence[str] | None = None,
) -> BuiltImage:
    """Make an image; ``diff_ids`` other than the layers' own make it a lying one."""
    system, architecture = platform.split("/")
    document = {
        "os": system,
        "architecture": architecture,
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids or [one.diff_id for one in layers]},
    }
    config_blob = Blob(f"{OCI}.config.v1+json", json.dumps(document).encode())
    blobs = [one.blob() for one in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config_blob.descriptor(),
        "layers": [blob.descriptor() for blob in blobs],
    }
    return BuiltImage(Blob(MANIFEST, json.dumps(manifest).encode()), (config_blob, *blobs))


def manifest_list(*images: tuple[str, BuiltImage]) -> BuiltImage:
    """Make a list of (platform as OS/ARCHITECTURE, image)."""
    manifests = []
    for platform, one in images:
        system, architecture = platform.split("/")
        described = {"os": system, "architecture": architecture}
        manifests.append(one.manifest.descriptor(platform=described))
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    return BuiltImage(
        Blob(INDEX, json.dumps(document).encode()), (), tuple(one for _, one in images)
    )


async def push(
    registry: RunningRegistry, name: str, built: BuiltImage, *, tag: str = "latest"
) -> str:
    """Push an image, and return the name under which it can be pulled."""
    async with aiohttp.ClientSession() as session:
        await _push(session, registry, name, built, tag)
    return f"{registry.name}/{name}:{tag}"


async def _push(
    session: aiohttp.ClientSession,
    registry: RunningRegistry,
    name: str,
    built: BuiltImage,
    tag: str,
) -> None:
    trust = ssl.create_default_context(cafile=str(registry.ca)) if registry.ca else True
    repository = URL(registry.url) / "v2" / name
    tls: dict[str, Any] = {"ssl": trust, "server_hostname": registry.host if registry.ca else None}
    for blob in built.blobs:
        async with session.post(repository / "blobs" / "uploads" / "", **tls) as response:
            assert response.status == 202, await response.text()
            place = repository.join(URL(response.headers["Location"]))
        place = place.update_query(digest=blob.digest)
        async with session.put(place, data=io.BytesIO(blob.content), **tls) as response:
            assert response.status == 201, await response.text()
    for one in built.below:
        await _push(session, registry, name, one, one.manifest.digest)
    headers = {"Content-Type": built.manifest.media_type}
    url = repository / "manifests" / tag
    async with session.put(url, data=built.manifest.content, headers=headers, **tls) as response:
        assert response.status == 201, await response.text()
