"""A real registry on loopback for tests, with TLS from an authority made here, or plain."""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.images import Registry
from tests.support.waiting import stretched

REGISTRY_HOST = "registry.estiba"
DAY = timedelta(days=1)


class Authority:
    """A certificate authority whose files are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, host: str) -> tuple[Path, Path]:
        """Make a certificate for a host, by name and on 127.0.0.1: its file and its key's."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = [x509.DNSName(host), x509.IPAddress(ip_address("127.0.0.1"))]
        certificate = (
            self._builder(subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        cert_file, key_file = self._folder / f"{host}.pem", self._folder / f"{host}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert_file, key_file

    def _builder(
        self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
        )


@dataclass(frozen=True, slots=True)
class RunningRegistry:
    """``name`` is how images name it; ``address`` is where it listens; ``ca`` None means plain.

    The certificate is for the name without its port.
    """

    name: str
    address: str
    ca: Path | None
    storage: Path

    @property
    def registries(self) -> dict[str, Registry]:
        """Return it as the agent's configuration has it."""
        return {self.name: Registry(self.address, self.ca)}

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://{self.address}"

    @property
    def host(self) -> str:
        return self.name.rpartition(":")[0]

    def blob_file(self, digest: str) -> Path:
        """Return where the registry keeps a blob, for a test that damages it."""
        algorithm, _, name = digest.partition(":")
        blobs = self.storage / "docker/registry/v2/blobs"
        return blobs / algorithm / name[:2] / name / "data"


@asynccontextmanager
async def run_registry(
    folder: Path, authority: Authority | None, *, host: str = REGISTRY_HOST
) -> AsyncIterator[RunningRegistry]:
    """Run docker-registry until the end of the block; plain if there is no authority."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    address = f"127.0.0.1:{port}"
    storage = folder / "storage"
    config = folder / "config.yml"
    tls = ""
    if authority is not None:
        cert, key = authority.issue(host)
        tls = f"  tls: {{certificate: {cert}, key: {key}}}\n"
    config.write_text(
        "version: 0.1\n"
        "log: {level: warn}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}}}\n"
        f"http:\n  addr: {address}\n{tls}"
    )
    name = f"{host}:{port}" if authority is not None else address
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            "docker-registry", "serve", str(config), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            await listening(port, process)
            yield RunningRegistry(name, address, authority.ca if authority else None, storage)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def listening(port: int, process: asyncio.subprocess.Process) -> None:
    """Return when something listens on the port of 127.0.0.1."""
    async with asyncio.timeout(stretched(20)):
        while True:
            assert process.returncode is None, "the registry ended"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            await writer.wait_closed()
            return
