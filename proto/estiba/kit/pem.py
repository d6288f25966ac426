"""Keys, signing requests and the files they lie in: what every holder of a certificate does.

A holder's file has its certificate and its key in one, so that replacing it replaces both.
"""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Life:
    """When a certificate is good, in seconds since the epoch."""

    begins_s: float
    ends_s: float

    def remaining_s(self, now_s: float) -> float:
        """Return the seconds that are left; negative once it has ended."""
        return self.ends_s - now_s

    def half_over(self, now_s: float) -> bool:
        return now_s >= (self.begins_s + self.ends_s) / 2


def life_of(pem: bytes) -> Life:
    """Read the life of the first certificate in a file's text.

    Raises:
        ValueError: there is none.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    return Life(
        certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    )


def make_key_and_request(*, name: str, role: str, hostname: str = "") -> tuple[bytes, bytes]:
    """Make a new key, and ask for a certificate for it; return both as PEM.

    Args:
        name: the holder's id; "" if the authority is to choose it.
        role: as in `estiba.kit.tls.Role`.
        hostname: of a node; a node may not claim another one later.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    text = key_text(key)
    return text, make_request(text, name=name, role=role, hostname=hostname)


def make_request(key_pem: bytes, *, name: str, role: str, hostname: str = "") -> bytes:
    """Ask for a certificate for a key that exists; a file's text with the key in it will do.

    Raises:
        ValueError: there is no key of ours.
    """
    request = x509.CertificateSigningRequestBuilder().subject_name(subject(name, role, hostname))
    return request.sign(load_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def subject(name: str, role: str, hostname: str = "") -> x509.Name:
    """Return a holder's name in certificates: CN the id, O the role, OU a node's host name."""
    parts = (
        (NameOID.COMMON_NAME, name),
        (NameOID.ORGANIZATION_NAME, role),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, hostname),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts if value])


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read the first key in a file's text.

    Raises:
        ValueError: there is none, or it is not of the kind that we make.
    """
    begin = pem.find(b"-----BEGIN PRIVATE KEY-----")
    key = serialization.load_pem_private_key(pem[max(begin, 0) :], password=None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    raise ValueError("the key is no elliptic-curve key")


def key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Return what a node is known by: the id that its first key gives it, 16 hex digits."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(der).hexdigest()[:16]


def replace_file(
    path: Path, content: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None
) -> None:
    """Write a file at once and for good: a reader, or a crash, finds the old text or the new.

    Args:
        owner: user and group id; None: whoever writes it.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        # It may hold a key.
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
