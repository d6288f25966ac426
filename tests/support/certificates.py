"""The certificates of a small cluster, made once for a test run."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controlplane.authority import files, issuing
from controlplane.authority.issuing import Authority, Holder
from controlplane.cli.dev import authority, plan
from estiba.kit import pem
from estiba.kit.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class Certificates:
    """One authority, and what it issued: user, metrics, estibad-1, estibad-2, n1, n2."""

    folder: Path

    def of(self, holder: str) -> TlsFiles:
        pki = self.folder / "pki"
        return TlsFiles(pki / "ca.pem", pki / f"{holder}.pem", pki / f"{holder}.pem")

    @property
    def authority(self) -> Authority:
        pki = self.folder / "pki"
        return files.open_authority(pki / "ca.pem", pki / "ca-key.pem")

    def made(self, file: str, holder: Holder, *, at: datetime.datetime | None = None) -> TlsFiles:
        """Issue another certificate, as of now or of another time."""
        now = at or datetime.datetime.now(datetime.UTC)
        path = self.folder / "pki" / f"{file}.pem"
        path.write_bytes(issuing.issue_with_key(self.authority, holder, now))
        return self.of(file)

    def ended(self, holder: Holder) -> TlsFiles:
        """Issue a certificate that ended a day ago."""
        at = datetime.datetime.now(datetime.UTC) - issuing.LIFE - datetime.timedelta(days=1)
        return self.made(f"{holder.name}-ended", holder, at=at)

    def of_stranger(self, role: str) -> TlsFiles:
        """Issue a certificate that TLS accepts, with a role that is none of ours."""
        now = datetime.datetime.now(datetime.UTC)
        pki = self.folder / "pki"
        authority_key = serialization.load_pem_private_key(
            (pki / "ca-key.pem").read_bytes(), password=None
        )
        assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
        authority_name = x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes()).subject
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [(NameOID.COMMON_NAME, "stranger"), (NameOID.ORGANIZATION_NAME, role)]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(oid, name) for oid, name in subject]))
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(authority_key, hashes.SHA256())
        )
        (pki / "stranger.pem").write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM) + pem.key_text(key)
        )
        return self.of("stranger")


def issue(folder: Path) -> Certificates:
    seats = (plan.Seat("node-1", "n1"), plan.Seat("node-2", "n2"))
    authority.issue_all(plan.Layout(folder, folder, seats), datetime.datetime.now(datetime.UTC))
    return Certificates(folder)
