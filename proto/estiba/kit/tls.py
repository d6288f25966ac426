"""Who is on the other end: certificates as both programs read and check them.

A certificate's subject says who its holder is: CN the id, O the role, OU a node's host
name. A role never works as another: the members' server name stands only in members'
certificates, so a node cannot pass for the control plane.
"""

import datetime
import math
import os
import ssl
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from estiba.kit.handshakes import Refused, watch_handshakes

if TYPE_CHECKING:
    # Imported where it is used: a machine that joins speaks no gRPC yet.
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
    hostname: str = field(default="", compare=False)
    """Of a node; "" if its certificate binds none."""
    ends_at_s: float = field(default=math.inf, compare=False)
    """When the certificate ends, in seconds since the epoch: TLS looks at that only once."""

    def ended(self, now_s: float) -> str:
        """Return that the certificate has ended, in a sentence; "" if it has not."""
        if now_s < self.ends_at_s:
            return ""
        at = datetime.datetime.fromtimestamp(self.ends_at_s, datetime.UTC)
        return (
            f"the certificate of {self} ended on {at:%Y-%m-%d %H:%M:%S} UTC: connect with a new one"
        )

    def __str__(self) -> str:
        return f"{self.role.value.removeprefix('estiba:')}:{self.name}"


class ServerTls(Protocol):
    """What serves HTTPS needs: files read once, or files that are read again."""

    def server_context(self, on_refused: Refused | None = None) -> ssl.SSLContext: ...


class ChannelTls(Protocol):
    """What opens channels needs."""

    @property
    def generation(self) -> int:
        """Grows when there is another certificate: channels that are older have the former."""

    def channel_credentials(self) -> "grpc.ChannelCredentials": ...


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold, of one reading. Certificate and key may be the same text."""

    ca: bytes
    cert: bytes
    key: bytes = field(repr=False)

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let new handshakes show this certificate.

        Raises:
            ssl.SSLError: the key is not the certificate's, or one of them is none.
        """
        both = self.cert if self.cert == self.key else self.cert + b"\n" + self.key
        # OpenSSL reads files alone, and reads one twice: this one nobody replaces in between.
        file = os.memfd_create("certificate")
        try:
            os.write(file, both)
            # An empty password: it would ask for one on the terminal.
            context.load_cert_chain(f"/proc/self/fd/{file}", password="")
        finally:
            os.close(file)

    def server_context(self, on_refused: Refused | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        context.load_verify_locations(cadata=self.ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that is resumed is not verified again: its certificate may have ended.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        if on_refused is not None:
            watch_handshakes(context, on_refused)
        return context

    def server_certificate(self) -> "grpc.ServerCertificateConfiguration":
        import grpc

        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.cert)], root_certificates=self.ca
        )

    def channel_credentials(self) -> "grpc.ChannelCredentials":
        import grpc

        return grpc.ssl_channel_credentials(
            root_certificates=self.ca, private_key=self.key, certificate_chain=self.cert
        )


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the authority we trust, our certificate, our key.

    Certificate and key may be one file. What is made of them here stays as it was made;
    `estiba.kit.livetls` takes over new files.
    """

    ca: Path
    cert: Path
    key: Path

    @property
    def generation(self) -> int:
        return 0

    def read(self) -> Pems:
        """Raise OSError for a file that cannot be read."""
        cert = self.cert.read_bytes()
        return Pems(
            ca=self.ca.read_bytes(),
            cert=cert,
            key=cert if self.key == self.cert else self.key.read_bytes(),
        )

    def server_credentials(self) -> "grpc.ServerCredentials":
        """Serve gRPC, and demand a certificate of every caller."""
        import grpc

        pems = self.read()
        return grpc.ssl_server_credentials(
            [(pems.key, pems.cert)], root_certificates=pems.ca, require_client_auth=True
        )

    def channel_credentials(self) -> "grpc.ChannelCredentials":
        return self.read().channel_credentials()

    def server_context(self, on_refused: Refused | None = None) -> ssl.SSLContext:
        """Serve HTTPS, and demand a certificate of every caller."""
        return self.read().server_context(on_refused)

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        self.read().load_into(context)
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

    certificate = x509.load_pem_x509_certificate(certificate_pem)
    subject = certificate.subject
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    roles = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    hostnames = subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    if len(names) != 1 or len(roles) != 1 or len(hostnames) > 1 or not names[0].value:
        raise ValueError(
            f"certificate subject {subject.rfc4514_string()!r} needs one CN, one O"
            " and at most one OU"
        )
    hostname = str(hostnames[0].value) if hostnames else ""
    ends_at_s = certificate.not_valid_after_utc.timestamp()
    return Identity(Role(str(roles[0].value)), str(names[0].value), hostname, ends_at_s)
