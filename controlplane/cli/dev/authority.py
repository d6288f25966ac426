"""The cluster's two certificate authorities, and a certificate for each of its programs.

The store has an authority of its own: no certificate that a node or a user holds
opens etcd. Keys are written 0600 into a folder that is 0700.
"""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.cli.dev import plan
from estiba.kit.tls import AGENT_SERVER_NAME, MEMBER_SERVER_NAME, Role

AUTHORITY_DAYS = 3650
HOLDER_DAYS = 365
# A certificate that ends within this time is issued anew at the next start.
RENEW_DAYS = 60

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a certificate is for, and what it may be used for."""

    file: str
    name: str
    role: str
    usages: tuple[x509.ObjectIdentifier, ...]
    names: tuple[str, ...] = field(default=())


def holders(layout: plan.Layout) -> tuple[list[Holder], list[Holder]]:
    """Return who holds a certificate of the cluster's authority, and who of the store's."""
    both = (SERVER, CLIENT)
    registry = ("registry.estiba", "localhost", str(plan.REGISTRY), "127.0.0.1")
    cluster = [
        Holder("user", "admin", Role.USER, (CLIENT,)),
        Holder("metrics", "prometheus", Role.METRICS, (CLIENT,)),
        Holder("registry", "registry", "estiba:registry", (SERVER,), registry),
    ]
    cluster += [Holder(m, m, Role.MEMBER, both, (MEMBER_SERVER_NAME,)) for m in plan.MEMBERS]
    cluster += [
        Holder(seat.hostname, seat.id, Role.NODE, both, (AGENT_SERVER_NAME,))
        for seat in layout.seats
    ]
    store = [
        # etcd's own gateway calls etcd with the server's certificate.
        Holder("etcd", "etcd", "etcd:server", both, (str(plan.ETCD), "127.0.0.1")),
        Holder("etcd-client", "estibad", "etcd:client", (CLIENT,)),
    ]
    return cluster, store


def issue_all(layout: plan.Layout, now: datetime.datetime) -> None:
    """Make whatever authority or certificate is missing or about to end."""
    folder = layout.folder / "pki"
    folder.mkdir(mode=0o700, exist_ok=True)
    cluster, store = holders(layout)
    for authority, members in (("ca", cluster), ("etcd-ca", store)):
        issuer = _Authority.open_or_make(folder, authority, now)
        for holder in members:
            if not _lasts(folder / f"{holder.file}.pem", now):
                issuer.issue(folder, holder, now)


def _lasts(certificate: Path, now: datetime.datetime) -> bool:
    if not certificate.exists():
        return False
    ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return ends > now + datetime.timedelta(days=RENEW_DAYS)


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open_or_make(cls, folder: Path, name: str, now: datetime.datetime) -> "_Authority":
        certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
        if certificate.exists():
            loaded = serialization.load_pem_private_key(key.read_bytes(), None)
            if not isinstance(loaded, ec.EllipticCurvePrivateKey):
                raise ValueError(f"{key} is not an elliptic-curve key")
            return cls(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)
        made = cls._make(name, now)
        _write_pair(certificate, made.certificate, key, made.key)
        return made

    @classmethod
    def _make(cls, name: str, now: datetime.datetime) -> "_Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(f"estiba dev {name}", "estiba:authority")
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
            _begun(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(signs, critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    def issue(self, folder: Path, holder: Holder, now: datetime.datetime) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer_key = self.key.public_key()
        builder = (
            _begun(
                _subject(holder.name, holder.role),
                self.certificate.subject,
                key.public_key(),
                now,
                HOLDER_DAYS,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(holder.usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
            )
        )
        if holder.names:
            builder = builder.add_extension(_alternatives(holder.names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        _write_pair(
            folder / f"{holder.file}.pem", certificate, folder / f"{holder.file}-key.pem", key
        )


def _subject(name: str, role: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, role),
        ]
    )


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # A clock that is a little behind must not refuse a new certificate.
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _alternatives(names: Sequence[str]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            address = ip_address(name)
        except ValueError:
            found.append(x509.DNSName(name))
        else:
            found.append(x509.IPAddress(IPv4Address(int(address))))
    return x509.SubjectAlternativeName(found)


def _write_pair(
    certificate_path: Path,
    certificate: x509.Certificate,
    key_path: Path,
    key: ec.EllipticCurvePrivateKey,
) -> None:
    """Write the key first: a certificate that is there has its key."""
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _replace(key_path, text, 0o600)
    _replace(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _replace(path: Path, content: bytes, mode: int) -> None:
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    new.replace(path)
