"""The text of a join token: which cluster it is for, and what admits a machine to it. Pure.

The digest is that of the cluster's authority, so whoever holds a token knows the cluster
before it says anything to it.
"""

import re
from base64 import b32encode
from dataclasses import dataclass, field
from hashlib import sha256

# Base32 in lower case without padding. An id is 5 random bytes, a secret 16.
ID_BYTES = 5
SECRET_BYTES = 16
ID_LENGTH = 8
SECRET_LENGTH = 26

BEGIN = "estiba-1-"

_LETTERS = re.compile(r"[a-z2-7]*")
_DIGEST_LENGTH = 52
_COPY_WHOLE = "copy the whole text that `estiba cluster token create` printed"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """``str`` of it is the text, secret included; ``repr`` hides the secret."""

    digest: str
    id: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        return f"{BEGIN}{self.digest}-{self.id}-{self.secret}"


def parse(text: str) -> JoinToken:
    """Read a token's text; blanks around it do not matter.

    Raises:
        ValueError: it is none; the sentence does not repeat it, since it may hold a secret.
    """
    text = text.strip()
    if not text.startswith(BEGIN):
        raise ValueError(f"the token does not begin with {BEGIN}: {_COPY_WHOLE}")
    parts = text.removeprefix(BEGIN).split("-")
    if len(parts) != 3:
        raise ValueError(f"the token has {len(parts)} parts after {BEGIN}, not 3: {_COPY_WHOLE}")
    lengths = (_DIGEST_LENGTH, ID_LENGTH, SECRET_LENGTH)
    for name, part, length in zip(("digest", "id", "secret"), parts, lengths, strict=True):
        if not _is(part, length):
            raise ValueError(f"the token's {name} is not {length} of a-z and 2-7: {_COPY_WHOLE}")
    return JoinToken(*parts)


def digest_of(der: bytes) -> str:
    """Return the digest by which a token names the authority of this DER."""
    return letters(sha256(der).digest())


def letters(raw: bytes) -> str:
    """Write bytes as a token does."""
    return b32encode(raw).decode().rstrip("=").lower()


def is_id(text: str) -> bool:
    return _is(text, ID_LENGTH)


def is_secret(text: str) -> bool:
    return _is(text, SECRET_LENGTH)


def _is(text: str, length: int) -> bool:
    return len(text) == length and _LETTERS.fullmatch(text) is not None
