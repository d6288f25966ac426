"""Read image references as Docker writes them, and expand short names as Docker does.

Pure. ``web`` means ``docker.io/library/web:latest``: the first part of a name is a
registry only if it has a dot, a colon or a capital letter, or is ``localhost``.
"""

import re
from dataclasses import dataclass

from agent.errors import ImageError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME_LENGTH = 255

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
_IMAGE_ID = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A fully expanded name. It has a tag, a digest, or both, and then the digest decides."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    def pinned(self, digest: str) -> "Reference":
        """Return the same image at exactly this content."""
        return Reference(self.registry, self.repository, None, digest)


def is_digest(text: str) -> bool:
    """Say whether ``text`` is a digest that can be verified, and is safe in a path."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Expand what a person wrote into a full reference.

    Raises:
        ImageError: it is no reference; the message quotes it and says which part is wrong.
    """
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise ImageError(f"image {text!r}: {digest!r} is not a digest (sha256: and 64 hex digits)")
    rest, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise ImageError(f"image {text!r}: {tag!r} is not a tag")
    registry, repository = _split_registry(rest)
    if not _REGISTRY.fullmatch(registry):
        raise ImageError(f"image {text!r}: {registry!r} is not a registry's name")
    if not _REPOSITORY.fullmatch(repository):
        hint = " (names are in small letters)" if _REPOSITORY.fullmatch(repository.lower()) else ""
        raise ImageError(f"image {text!r}: {repository!r} is not a repository's name{hint}")
    if _IMAGE_ID.fullmatch(rest):
        raise ImageError(f"image {text!r}: an image's id is not a name that can be fetched")
    if len(registry) + 1 + len(repository) > MAX_NAME_LENGTH:
        raise ImageError(f"image {text!r}: longer than {MAX_NAME_LENGTH} characters")
    if tag is None and not digest:
        tag = DEFAULT_TAG
    return Reference(registry, repository, tag, digest or None)


def _split_tag(name: str) -> tuple[str, str | None]:
    # A colon before the last slash is a registry's port, not a tag.
    colon = name.rfind(":")
    if colon <= name.rfind("/"):
        return name, None
    return name[:colon], name[colon + 1 :]


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_registry = slash and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )
    registry, repository = (first, rest) if is_registry else (DEFAULT_REGISTRY, name)
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository
