"""Who is on the other end: certificates as both programs read and check them.

A certificate's subject says who its holder is: CN the id, O the role. A role never
works as another: the members' server name stands only in members' certificates, so
a node cannot pass for the control plane.
"""

import ssl
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import grpc

# One fixed server name for all members of a cluster, so that an agent may reach any of them under
# any address; and one for the metrics of all agents, which Prometheus checks.
MEMBER_SERVER_NAME = "estibad.estiba"
AGENT_SERVER_NAME = "agent.estiba"


class Role(StrEnum):
    """What a certificate's holder is: the value of O in its subject."""

    NODE = "estiba:node"
    USER = "estiba:user"
    MEMBER = "estiba:member"
    METRICS = "estiba:metrics"


@dataclass(frozen=True, slots=True)
class Identity:
    role: Role
    name: str

    def __str__(self) -> str:
        return f"{self.role.value.removeprefix('estiba:')}:{self.name}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the authority we trust, our certificate, our key."""

    ca: Path
    cert: Path
    key: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """Serve gRPC, and demand a certificate of every caller."""
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=self.ca.read_bytes(),
            require_client_auth=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes(),
            private_key=self.key.read_bytes(),
            certificate_chain=self.cert.read_bytes(),
        )

    def server_context(self) -> ssl.SSLContext:
        """Serve HTTPS, and demand a certificate of every caller."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key)
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.cert, self.key)
        return context


# gRPC checks the peer against this name instead of the address that was dialled.
MEMBER_CHANNEL_OPTIONS = (("grpc.ssl_target_name_override", MEMBER_SERVER_NAME),)


@lru_cache(maxsize=4096)
def identity_of(certificate_pem: bytes) -> Identity:
    """Read the holder from a certificate that TLS has already verified.

    Raises:
        ValueError: the subject names no role of ours, or no one.
    """
    # The command line never asks, and would spend a sixth of its time on this import.
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    subject = x509.load_pem_x509_certificate(certificate_pem).subject
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    roles = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(names) != 1 or len(roles) != 1 or not names[0].value:
        raise ValueError(f"certificate subject {subject.rfc4514_string()!r} needs one CN and one O")
    return Identity(Role(str(roles[0].value)), str(names[0].value))
