"""What somebody asks to have signed: is it well-formed, is the key theirs, who are they. Pure.

Every refusal is a ValueError with a sentence for whoever asked.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from controlplane.authority.issuing import Authority, signed_by
from estiba.kit import pem
from estiba.kit.tls import Identity, Role, identity_of

# A request of ours has some 400 bytes.
MOST_BYTES = 8192

# What `cryptography` raises for what strangers send: of a field with a value that it does not know
# it says so by errors of their own.
_UNREADABLE = (
    *(ValueError, TypeError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.UnsupportedGeneralNameType),
)

_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Request:
    """A signing request whose sender has the key."""

    subject: x509.Name
    public_key: ec.EllipticCurvePublicKey

    @property
    def key_id(self) -> str:
        """The id of a node that joins with this key for the first time."""
        return pem.key_id(self.public_key)


def read_request(request_pem: bytes) -> Request:
    """Read a request; raises ValueError."""
    if len(request_pem) > MOST_BYTES:
        raise ValueError(f"request_pem: {len(request_pem)} bytes, {MOST_BYTES} at most")
    with _readable("request_pem: is no signing request in PEM"):
        request = x509.load_pem_x509_csr(request_pem)
        subject, public_key = request.subject, request.public_key()
    # Before the signature is looked at: with another kind of key that may take long.
    match public_key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            pass
        case _:
            raise ValueError("request_pem: the key is not on the curve P-256, as all keys here are")
    with _readable("request_pem: is signed in a way that is not known here"):
        is_proven = request.is_signature_valid
    if not is_proven:
        raise ValueError("request_pem: the signature does not prove that you have the key")
    return Request(subject, public_key)


def check_renewal(request: Request, caller: Identity) -> None:
    """Raise ValueError unless a request is for whoever sends it."""
    wanted = pem.subject(caller.name, caller.role, caller.hostname)
    if request.subject != wanted:
        raise ValueError(
            f"the request is for {request.subject.rfc4514_string()!r},"
            f" and you are {wanted.rfc4514_string()!r}: a certificate is renewed by its holder"
        )


def check_hostname(hostname: str) -> None:
    """Raise ValueError for a host name that no node may have."""
    if not _HOSTNAME.fullmatch(hostname):
        raise ValueError(
            f"hostname: {hostname[:64]!r} is no host name: use up to 64 letters, digits, . - and _"
        )


def node_id(request: Request, former_certificate_pem: bytes, authority: Authority) -> str:
    """Return the id of the node that asks: that of its key, or the one it had before.

    Args:
        former_certificate_pem: of a machine that was a node, its dates do not matter; b"" if
            it was none.

    Raises:
        ValueError: the former certificate is no node's of this cluster, or has another key.
    """
    if not former_certificate_pem:
        return request.key_id
    field = "former_certificate_pem"
    if len(former_certificate_pem) > MOST_BYTES:
        raise ValueError(f"{field}: {len(former_certificate_pem)} bytes, {MOST_BYTES} at most")
    with _readable(f"{field}: is no node's certificate"):
        certificate = x509.load_pem_x509_certificate(former_certificate_pem)
        public_key = certificate.public_key()
    if not signed_by(authority, certificate):
        raise ValueError(
            f"{field}: this cluster's authority has not signed it: this machine was a node of"
            " another cluster, run `estiba node leave` on it first"
        )
    # Not before: who is read of is remembered, and strangers would fill the memory.
    with _readable(f"{field}: is no node's certificate"):
        holder = identity_of(certificate.public_bytes(Encoding.PEM))
    if holder.role is not Role.NODE:
        raise ValueError(f"{field}: it is {holder}'s, not a node's")
    if public_key != request.public_key:
        raise ValueError(f"{field}: it has another key than the request")
    return holder.name


@contextmanager
def _readable(sentence: str) -> Iterator[None]:
    """Say this of whatever cannot be read in the block."""
    try:
        yield
    except _UNREADABLE as fault:
        raise ValueError(sentence) from fault
