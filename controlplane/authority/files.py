"""Where the authority and its holders' certificates lie: one PEM file for each holder.

Keys are written 0600, and as a whole or not at all.
"""

import datetime
from pathlib import Path

from controlplane.authority import issuing
from controlplane.authority.issuing import Authority, Holder
from estiba.kit import pem

Owner = tuple[int, int]
"""User and group id."""


def open_authority(certificate: Path, key: Path) -> Authority:
    """Read an authority from its files.

    Raises:
        ValueError: there is none, or the two do not belong together; names the files.
    """
    try:
        return issuing.read_authority(certificate.read_bytes(), key.read_bytes())
    except OSError as fault:
        raise ValueError(f"{fault.filename}: {fault.strerror}") from fault
    except ValueError as fault:
        raise ValueError(f"{certificate} and {key}: {fault}") from fault


def open_or_make_authority(
    certificate: Path,
    key: Path,
    name: str,
    now: datetime.datetime,
    *,
    owner: Owner | None = None,
) -> Authority:
    """Read an authority, or make it; raises as `open_authority` does.

    The key is written first, so that a certificate that is there has its key; a key without
    one has signed nothing, and is replaced.
    """
    if certificate.exists():
        return open_authority(certificate, key)
    made = issuing.make_authority(name, now)
    pem.replace_file(key, pem.key_text(made.key), owner=owner)
    pem.replace_file(certificate, made.pem, mode=0o644, owner=owner)
    return made


def ensure_holder(
    path: Path,
    authority: Authority,
    holder: Holder,
    now: datetime.datetime,
    *,
    life: datetime.timedelta = issuing.LIFE,
    owner: Owner | None = None,
    force: bool = False,
) -> bool:
    """Write a holder's certificate and a new key, unless the file's is good; say if it was written.

    Good is one of this authority for this holder with more than half of its life to come.
    """
    if not force and _is_good(path, authority, holder, now):
        return False
    text = issuing.issue_with_key(authority, holder, now, life=life)
    pem.replace_file(path, text, owner=owner)
    return True


def _is_good(path: Path, authority: Authority, holder: Holder, now: datetime.datetime) -> bool:
    try:
        text = path.read_bytes()
        return issuing.is_of(authority, holder, text) and not pem.life_of(text).half_over(
            now.timestamp()
        )
    except (OSError, ValueError):
        return False
