"""What stands in each certificate of a cluster, and the signature under it. Pure.

The store has an authority of its own: no certificate that a node or a user holds opens
etcd. All keys are on the curve P-256.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from estiba.kit import jointoken, pem
from estiba.kit.tls import AGENT_SERVER_NAME, MEMBER_SERVER_NAME, Role

AUTHORITY_LIFE = datetime.timedelta(days=3650)
LIFE = datetime.timedelta(days=90)
# A clock that is a little behind must not refuse a new certificate.
BEFORE = datetime.timedelta(minutes=5)

AUTHORITY_ROLE = "estiba:authority"


class OtherRole(StrEnum):
    """Further holders of certificates, of whom estibad takes no call."""

    ETCD = "etcd:server"
    ETCD_CLIENT = "etcd:client"
    REGISTRY = "estiba:registry"


_SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_BOTH = _SERVER + _CLIENT

_USAGES: dict[Role | OtherRole, tuple[x509.ObjectIdentifier, ...]] = {
    Role.NODE: _BOTH,
    Role.USER: _CLIENT,
    Role.MEMBER: _BOTH,
    Role.METRICS: _CLIENT,
    # etcd's own gateway calls etcd with the server's certificate.
    OtherRole.ETCD: _BOTH,
    OtherRole.ETCD_CLIENT: _CLIENT,
    OtherRole.REGISTRY: _SERVER,
}
# The names that a server of this role has in all clusters.
_NAMES: dict[Role | OtherRole, tuple[str, ...]] = {
    Role.NODE: (AGENT_SERVER_NAME,),
    Role.MEMBER: (MEMBER_SERVER_NAME,),
}


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a certificate is for."""

    role: Role | OtherRole
    name: str
    hostname: str = ""
    """Of a node: the one that it may claim."""
    names: tuple[str, ...] = ()
    """Host names and addresses of a server, besides those of its role."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def digest(self) -> str:
        """What join tokens name it by."""
        return jointoken.digest_of(self.certificate.public_bytes(serialization.Encoding.DER))


def make_authority(name: str, now: datetime.datetime) -> Authority:
    """Make a new root with a new key.

    Args:
        name: for people who read certificates, such as "estiba default".
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = pem.subject(name, AUTHORITY_ROLE)
    signs = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _begun(subject, subject, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def read_authority(certificate_pem: bytes, key_pem: bytes) -> Authority:
    """Read an authority that was made before.

    Raises:
        ValueError: the certificate signs no others, or the key is another's.
    """
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    key = pem.load_key(key_pem)
    if certificate.public_key() != key.public_key():
        raise ValueError("the key is not that of the authority's certificate")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        raise ValueError("the certificate is no authority's") from None
    if not constraints.value.ca:
        raise ValueError("the certificate is no authority's")
    return Authority(certificate, key)


def issue(
    authority: Authority,
    holder: Holder,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    *,
    life: datetime.timedelta = LIFE,
) -> bytes:
    """Return a certificate as PEM."""
    issuer_key = authority.key.public_key()
    subject = pem.subject(holder.name, holder.role, holder.hostname)
    builder = (
        _begun(subject, authority.certificate.subject, public_key, now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_USAGES[holder.role]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )
    names = (*_NAMES.get(holder.role, ()), *holder.names)
    if names:
        builder = builder.add_extension(_alternatives(names), critical=False)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issue_with_key(
    authority: Authority,
    holder: Holder,
    now: datetime.datetime,
    *,
    life: datetime.timedelta = LIFE,
) -> bytes:
    """Make a key, and return certificate and key as the text of one file.

    Only for holders on the authority's own machine: elsewhere a key is made where it stays.
    """
    key_pem, _ = pem.make_key_and_request(name=holder.name, role=holder.role)
    return issue(authority, holder, pem.load_key(key_pem).public_key(), now, life=life) + key_pem


def signed_by(authority: Authority, certificate: x509.Certificate) -> bool:
    """Say whether the authority signed a certificate, whatever its dates."""
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def has_signed(authority: Authority, text: bytes) -> bool:
    """Say the same of a file's certificate.

    Raises:
        ValueError: the text holds none.
    """
    return signed_by(authority, x509.load_pem_x509_certificate(text))


def is_of(authority: Authority, holder: Holder, text: bytes) -> bool:
    """Say whether a file's certificate is one of this authority for this holder, and has its key.

    Raises:
        ValueError: the text holds no certificate, or no key.
    """
    certificate = x509.load_pem_x509_certificate(text)
    wanted = pem.subject(holder.name, holder.role, holder.hostname)
    names = (*_NAMES.get(holder.role, ()), *holder.names)
    return (
        certificate.public_key() == pem.load_key(text).public_key()
        and certificate.subject == wanted
        and _names_in(certificate) == (_alternatives(names) if names else None)
        and signed_by(authority, certificate)
    )


def _names_in(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now - BEFORE + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _alternatives(names: Sequence[str]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)
