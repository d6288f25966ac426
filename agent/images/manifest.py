"""Understand what registries serve: manifest lists, manifests, image configurations.

Pure. All of it comes from strangers, so every field is checked for its type, and a
digest for its form, before anything is made of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.errors import ImageError
from agent.images.reference import is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MEDIA_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

T = TypeVar("T")

# As the kernel names machines, and as images name architectures: (architecture, variant).
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
}


@dataclass(frozen=True, slots=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A promise of content: its digest, and its size in bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Index:
    """One image for several platforms, best first where two fit."""

    entries: tuple[tuple[Platform | None, Descriptor], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about running it. ``env`` holds NAME=VALUE."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Configuration:
    """An image's configuration file. ``diff_ids``: digests of the layers unpacked, bottom first."""

    platform: Platform
    diff_ids: tuple[str, ...]
    config: ImageConfig


def platform_of(machine: str) -> Platform:
    """Return the platform of a Linux machine, named as uname(2) names it."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def parse_manifest(content: bytes) -> Index | Manifest:
    """Read a manifest or a manifest list of any kind still in use.

    Raises:
        ImageError: it is neither, and the message says what it is instead.
    """
    document = _document(content, "manifest")
    if document.get("schemaVersion") == 1:
        raise ImageError("its manifest is of schema version 1, which is no longer supported")
    if "manifests" in document:
        return Index(
            tuple(
                (_platform(entry.get("platform")), _descriptor(entry))
                for entry in _items(document, "manifests", dict)
            )
        )
    if "config" not in document or "layers" not in document:
        kind = document.get("mediaType")
        raise ImageError(f"its manifest is not an image's (its media type is {kind!r})")
    layers = tuple(_descriptor(layer) for layer in _items(document, "layers", dict))
    return Manifest(_descriptor(document["config"]), layers)


def choose(index: Index, wanted: Platform) -> Descriptor:
    """Pick the manifest for a platform: the same variant first, then one that names none.

    Raises:
        ImageError: there is none; the message lists what there is.
    """
    fitting = [
        (platform, descriptor)
        for platform, descriptor in index.entries
        if platform is not None and runs_on(platform, wanted)
    ]
    fitting.sort(key=lambda entry: entry[0].variant != wanted.variant)
    if fitting:
        return fitting[0][1]
    # Attestations sit in the same list under the platform unknown/unknown.
    offered = [str(p) for p, _ in index.entries if p is not None and p.os != "unknown"]
    raise ImageError(
        f"no platform {wanted} in the manifest list (has {', '.join(offered) or 'none'})"
    )


def runs_on(platform: Platform, wanted: Platform) -> bool:
    """Say whether what is built for ``platform`` runs on ``wanted``; a missing field fits all."""
    return (
        platform.os in ("", wanted.os)
        and platform.architecture in ("", wanted.architecture)
        and platform.variant in ("", wanted.variant)
    )


def parse_configuration(content: bytes) -> Configuration:
    """Read an image's configuration file.

    Raises:
        ImageError: it is not an image's configuration.
    """
    document = _document(content, "configuration")
    rootfs = _field(document, "rootfs", dict, {})
    diff_ids = tuple(_items(rootfs, "diff_ids", str))
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise ImageError(f"its configuration names the layer {diff_id!r}, which is no digest")
    inner = _field(document, "config", dict, {})
    labels = _field(inner, "Labels", dict, {})
    return Configuration(
        platform=_platform(document) or Platform("", ""),
        diff_ids=diff_ids,
        config=ImageConfig(
            entrypoint=tuple(_items(inner, "Entrypoint", str)),
            command=tuple(_items(inner, "Cmd", str)),
            env=tuple(_items(inner, "Env", str)),
            user=_field(inner, "User", str, ""),
            workdir=_field(inner, "WorkingDir", str, ""),
            stop_signal=_field(inner, "StopSignal", str, ""),
            labels={str(name): str(value) for name, value in labels.items()},
        ),
    )


def _document(content: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"its {what} is not JSON") from error
    if not isinstance(document, dict):
        raise ImageError(f"its {what} is not a JSON object")
    return document


def _field(document: dict[str, Any], name: str, kind: type[T], absent: T) -> T:
    value = document.get(name)
    if value is None:
        return absent
    # bool is an int to Python, never to JSON.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ImageError(f"its field {name!r} should be of type {kind.__name__}")
    return value


def _items(document: dict[str, Any], name: str, kind: type[T]) -> Sequence[T]:
    items = _field(document, name, list, [])
    if not all(isinstance(item, kind) for item in items):
        raise ImageError(f"its field {name!r} should hold values of type {kind.__name__}")
    return items


def _descriptor(document: Any) -> Descriptor:
    if not isinstance(document, dict):
        raise ImageError("its manifest refers to content in a form that is not known")
    digest = _field(document, "digest", str, "")
    if not is_digest(digest):
        raise ImageError(f"its manifest names the content {digest!r}, which is no digest")
    size = _field(document, "size", int, -1)
    if size < 0:
        raise ImageError(f"its manifest gives no size for {digest}")
    return Descriptor(_field(document, "mediaType", str, ""), digest, size)


def _platform(document: Any) -> Platform | None:
    if not isinstance(document, dict):
        return None
    return Platform(
        _field(document, "os", str, ""),
        _field(document, "architecture", str, ""),
        _field(document, "variant", str, ""),
    )
