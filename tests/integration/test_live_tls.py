"""Real handshakes: a certificate that is replaced is shown at once, a bad one never, and of a
handshake that fails it is known whose it was and why."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import aio
from prometheus_client import CollectorRegistry, generate_latest

from controlplane.authority.issuing import Holder
from estiba.kit.clock import SystemClock
from estiba.kit.livetls import LiveTls, show_remaining
from estiba.kit.serve import health_route, serve
from estiba.kit.tls import (
    MEMBER_CHANNEL_OPTIONS,
    MEMBER_SERVER_NAME,
    Role,
    TlsFiles,
    identity_of,
)
from estiba.v1 import control_pb2, control_pb2_grpc
from tests.support.certificates import Certificates, issue


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def files(tmp_path: Path, certificates: Certificates) -> TlsFiles:
    """One file with certificate and key, as machines have it."""
    file = tmp_path / "member.pem"
    write(file, certificates.of("estibad-1"))
    return TlsFiles(certificates.of("user").ca, file, file)


def write(file: Path, holder: TlsFiles) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(holder.cert.read_bytes())
    new.replace(file)


async def shown(address: str, tls: TlsFiles, *, protocol: str = "http/1.1") -> str:
    """Return whose certificate a server shows."""
    host, _, port = address.rpartition(":")
    context = tls.client_context()
    context.set_alpn_protocols([protocol])

    def look() -> str:
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=MEMBER_SERVER_NAME) as secured,
        ):
            certificate = ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True) or b"")
            return identity_of(certificate.encode()).name

    return await asyncio.to_thread(look)


@asynccontextmanager
async def grpc_server(live: LiveTls) -> AsyncIterator[str]:
    server = aio.server()
    port = server.add_secure_port("127.0.0.1:0", live.server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_a_web_server_shows_the_new_certificate(
    files: TlsFiles, certificates: Certificates
) -> None:
    live = LiveTls(files)
    async with serve(listen="127.0.0.1:0", tls=live, routes=[health_route(lambda: "")]) as address:
        assert await shown(address, certificates.of("user")) == "estibad-1"
        write(files.cert, certificates.of("estibad-2"))
        assert await shown(address, certificates.of("user")) == "estibad-1"

        assert live.refresh()
        assert not live.refresh()
        assert live.generation == 1
        assert await shown(address, certificates.of("user")) == "estibad-2"


async def test_a_grpc_server_shows_the_new_certificate(
    files: TlsFiles, certificates: Certificates
) -> None:
    live = LiveTls(files)
    user = certificates.of("user")
    async with grpc_server(live) as address:
        assert await shown(address, user, protocol="h2") == "estibad-1"
        write(files.cert, certificates.of("estibad-2"))
        live.refresh()
        assert await shown(address, user, protocol="h2") == "estibad-2"


async def test_a_grpc_server_still_refuses_whoever_shows_no_certificate_of_ours(
    files: TlsFiles, certificates: Certificates, foreign: Certificates
) -> None:
    ours = files.ca.read_bytes()
    stranger = foreign.of("user")
    async with grpc_server(LiveTls(files)) as address:
        for credentials in (
            grpc.ssl_channel_credentials(ours),
            grpc.ssl_channel_credentials(
                ours, stranger.key.read_bytes(), stranger.cert.read_bytes()
            ),
        ):
            async with aio.secure_channel(
                address, credentials, options=MEMBER_CHANNEL_OPTIONS
            ) as channel:
                with pytest.raises(aio.AioRpcError) as refused:
                    await control_pb2_grpc.ControlStub(channel).GetCluster(
                        control_pb2.GetClusterRequest(), timeout=10
                    )
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_file_that_is_no_certificate_leaves_the_former_in_use(
    files: TlsFiles, certificates: Certificates
) -> None:
    live = LiveTls(files)
    life = live.life
    without_key, _, _ = certificates.of("estibad-2").cert.read_bytes().partition(b"-----BEGIN PRI")
    for text in (b"", b"nothing", without_key):
        files.cert.write_bytes(text)
        with pytest.raises(ValueError, match=r"member\.pem: holds no certificate"):
            live.refresh()
    files.cert.unlink()
    with pytest.raises(ValueError, match=r"member\.pem: No such file"):
        live.refresh()
    assert live.life == life
    assert live.generation == 0

    write(files.cert, certificates.of("estibad-2"))
    assert live.refresh()


def test_files_that_are_no_good_at_the_start_are_named(files: TlsFiles, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.pem: No such file"):
        LiveTls(TlsFiles(files.ca, tmp_path / "absent.pem", files.key))


def test_the_remaining_life_is_read_when_it_is_asked_for(files: TlsFiles) -> None:
    registry, live = CollectorRegistry(), LiveTls(files)
    show_remaining(registry, {"member": lambda: live.life}, SystemClock())

    first, second = (remaining(registry) for _ in range(2))
    assert 0 < second < first
    assert first == pytest.approx(live.life.remaining_s(SystemClock().now()), abs=5)


def remaining(registry: CollectorRegistry) -> float:
    value = registry.get_sample_value(
        "estiba_certificate_remaining_seconds", {"certificate": "member"}
    )
    assert value is not None
    assert b"estiba_certificate_remaining_seconds" in generate_latest(registry)
    return value


async def test_a_refused_handshake_is_told_with_its_peer_and_its_reason(
    files: TlsFiles, certificates: Certificates, foreign: Certificates
) -> None:
    told: list[tuple[str, str]] = []
    async with serve(
        listen="127.0.0.1:0",
        tls=LiveTls(files),
        routes=[health_route(lambda: "")],
        on_refused=lambda peer, reason: told.append((peer, reason)),
    ) as address:
        nobody = ssl.create_default_context(cafile=str(files.ca))
        other = ssl.create_default_context(cafile=str(files.ca))
        other.load_cert_chain(foreign.of("user").cert, foreign.of("user").key)
        distrusts = foreign.of("user").client_context()
        for context in (nobody, other, distrusts):
            await refused_by(address, context)
        await knock(address, b"GET / HTTP/1.1\r\n\r\n")
        await knock(address, b"")

    assert [reason for _, reason in told] == [
        "it showed no certificate",
        "another authority signed its certificate",
        "it does not trust our certificate's authority",
        "it spoke HTTP without TLS",
    ]
    assert all(peer.startswith("127.0.0.1:") for peer, _ in told)
    assert len({peer for peer, _ in told}) == len(told)


async def refused_by(address: str, context: ssl.SSLContext) -> None:
    host, _, port = address.rpartition(":")

    def call() -> bytes:
        try:
            with (
                socket.create_connection((host, int(port)), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname=MEMBER_SERVER_NAME) as secured,
            ):
                # A client has shaken hands before the server looks at its certificate.
                return secured.recv(1)
        except (ssl.SSLError, ConnectionError):
            return b""

    assert not await asyncio.to_thread(call)


async def knock(address: str, said: bytes) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    if said:
        await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_a_certificate_that_has_ended_is_told_as_such(
    files: TlsFiles, certificates: Certificates
) -> None:
    told: list[str] = []
    ended = certificates.ended(Holder(Role.NODE, "n1"))
    async with serve(
        listen="127.0.0.1:0",
        tls=LiveTls(files),
        routes=[],
        on_refused=lambda _, reason: told.append(reason),
    ) as address:
        await refused_by(address, ended.client_context())

    assert told == ["its certificate has ended"]
