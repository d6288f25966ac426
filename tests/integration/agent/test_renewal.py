"""An agent renews its certificate while it works: one session, new handshakes, one file."""

import asyncio
import datetime
import logging
import re
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509

from controlplane.authority import issuing
from controlplane.authority.files import ensure_holder
from controlplane.authority.issuing import Holder
from estiba.kit.pem import life_of, load_key
from estiba.kit.tls import Role, TlsFiles
from tests.support.agent_node import IS_RUNNING, TASK, Node, assignment, told_later
from tests.support.certificates import Certificates, issue
from tests.support.dispatcher import Dispatcher

HOLDER = Holder(Role.NODE, "node-1", "n1")
SHORT = issuing.BEFORE + datetime.timedelta(seconds=15)
LONG = issuing.LIFE
CERTIFICATE = re.compile(b"-----BEGIN CERT.*?-----END CERTIFICATE-----\n", re.DOTALL)


SECOND = "web0001.2.1.1"


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def has_short_certificate(node: Node, folder: Path) -> TlsFiles:
    """Give the node one that is past half of its life, and ends in some seconds."""
    file = folder / "node.pem"
    ensure_holder(file, node.certificates.authority, HOLDER, now(), life=SHORT, force=True)
    node.tls = TlsFiles(node.certificates.of("n1").ca, file, file)
    return node.tls


def signer(
    certificates: Certificates, holder: Holder = HOLDER, *, life: datetime.timedelta = LONG
) -> "Signer":
    return Signer(certificates, holder, life)


class Signer:
    """Signs what it is sent, for whom it was told to."""

    def __init__(
        self, certificates: Certificates, holder: Holder, life: datetime.timedelta
    ) -> None:
        self._certificates = certificates
        self._holder = holder
        self._life = life
        self.asked: list[x509.CertificateSigningRequest] = []

    def __call__(self, request_pem: bytes) -> bytes:
        request = x509.load_pem_x509_csr(request_pem)
        self.asked.append(request)
        key = request.public_key()
        assert request.is_signature_valid
        return issuing.issue(
            self._certificates.authority,
            self._holder,
            key,  # type: ignore[arg-type]
            now(),
            life=self._life,
        )


def serial(text: bytes) -> int:
    return x509.load_pem_x509_certificate(text).serial_number


async def test_half_of_its_life_over_a_certificate_is_replaced_and_the_session_goes_on(
    node: Node, member: Dispatcher, certificates: Certificates, tmp_path: Path
) -> None:
    files = has_short_certificate(node, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        node.metrics_listen = f"127.0.0.1:{free.getsockname()[1]}"
    member.renewing = sign = signer(certificates)
    first = files.cert.read_bytes()
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        await told_later(lambda: files.cert.read_bytes() != first)
        text = files.cert.read_bytes()
        shown = await asyncio.to_thread(shown_by, node.metrics_listen)
        metrics = await scraped(node.metrics_listen, certificates)
        # The first one ends, and the session goes on.
        await asyncio.sleep(life_of(first).remaining_s(now().timestamp()))
        member.assign(assignment(SECOND, slot=2))
        await member.status(SECOND, IS_RUNNING)

    assert len(member.hellos) == 1
    assert member.renewals == 1
    assert files.cert.stat().st_mode & 0o777 == 0o600
    assert load_key(text).public_key() != load_key(first).public_key()
    assert sign.asked[0].subject == x509.load_pem_x509_certificate(first).subject
    assert serial(shown) == serial(text)
    (line,) = [each for each in metrics.splitlines() if each.startswith("estiba_certificate_r")]
    name, value = line.split()
    assert name == 'estiba_certificate_remaining_seconds{certificate="node"}'
    assert 89 * 86400 < float(value) < 90 * 86400


def shown_by(address: str) -> bytes:
    """Return the certificate that a server shows in a new handshake."""
    host, port = address.split(":")
    return ssl.get_server_certificate((host, int(port))).encode()


async def scraped(address: str, certificates: Certificates) -> str:
    context = certificates.of("metrics").client_context()
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"https://{address}/metrics", ssl=context, server_hostname="agent.estiba"
        ) as answer,
    ):
        return await answer.text()


async def test_a_member_without_authority_is_passed_over(
    node: Node, member: Dispatcher, certificates: Certificates, tmp_path: Path
) -> None:
    files = has_short_certificate(node, tmp_path)
    other = Dispatcher(member_id="estibad-2")
    await other.start(certificates.of("estibad-2"))
    other.renewing = signer(certificates)
    first = files.cert.read_bytes()
    async with node.agent(member, other):
        await told_later(lambda: files.cert.read_bytes() != first)
    assert other.renewals == 1
    await other.stop()


@pytest.mark.parametrize("fault", ["another node's", "another key's", "another authority's"])
async def test_what_is_issued_to_another_is_refused_and_the_file_stays(
    node: Node,
    member: Dispatcher,
    certificates: Certificates,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    files = has_short_certificate(node, tmp_path)
    (tmp_path / "foreign").mkdir()
    sentence = {
        "another node's": "it is node:node-2's, and node_id is node-1",
        "another key's": "it issued a certificate for another key",
        "another authority's": "it issued a certificate of another authority",
    }[fault]
    (wrong,) = re.findall(CERTIFICATE, certificates.of("n1").cert.read_bytes())
    signers: dict[str, Callable[[bytes], bytes]] = {
        "another node's": signer(certificates, Holder(Role.NODE, "node-2", "n1")),
        "another key's": lambda _: wrong,
        "another authority's": signer(issue(tmp_path / "foreign")),
    }
    member.renewing = signers[fault]
    first = files.cert.read_bytes()
    async with node.agent(member):
        await told_later(lambda: sentence in caplog.text)
        assert f"the certificate is not renewed yet: {member.address}: {sentence}" in caplog.text
    assert files.cert.read_bytes() == first


async def test_a_renewal_that_is_refused_is_tried_again_and_said(
    node: Node,
    member: Dispatcher,
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("agent.renewal.FIRST_RETRY_S", 0.2)
    files = has_short_certificate(node, tmp_path)
    first = files.cert.read_bytes()
    async with node.agent(member):
        await member.until(lambda: member.renewals >= 2)
        assert "UNAVAILABLE: no authority here" in caplog.text
        member.renewing = signer(certificates)
        await told_later(lambda: files.cert.read_bytes() != first)


async def test_a_new_certificate_of_somebody_else_in_its_file_is_not_taken_over(
    node: Node,
    member: Dispatcher,
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("estiba.kit.livetls.PERIOD_S", 0.1)
    file = tmp_path / "node.pem"
    file.write_bytes(certificates.of("n1").cert.read_bytes())
    node.tls = TlsFiles(certificates.of("n1").ca, file, file)
    async with node.agent(member):
        await member.until(lambda: bool(member.hellos))
        file.write_bytes(certificates.of("n2").cert.read_bytes())
        await told_later(lambda: "the former certificate stays in use" in caplog.text)
        address = member.address
        await member.stop()
        await member.start(certificates.of("estibad-1"), address=address)
        await member.until(lambda: len(member.hellos) == 2)
    assert f"{file}: it is node:node-2's, and node_id is node-1" in caplog.text


async def test_why_there_is_no_session_stands_in_the_log(
    node: Node,
    member: Dispatcher,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "node.pem"
    long_ago = now() - datetime.timedelta(days=100)
    ensure_holder(file, node.certificates.authority, HOLDER, long_ago, force=True)
    node.tls = TlsFiles(node.certificates.of("n1").ca, file, file)
    async with node.agent(member):
        said = f"no session with {member.address}: our certificate in {file} ended on "
        await told_later(lambda: said in caplog.text)
    assert "`estiba node join` with a new token renews it" in caplog.text
