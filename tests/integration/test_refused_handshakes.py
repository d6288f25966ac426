"""Whoever shows no certificate of ours gets no word in at any listener, is counted and logged."""

import asyncio
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc import aio

from controlplane.authority.issuing import Holder
from estiba.kit.tls import MEMBER_CHANNEL_OPTIONS, MEMBER_SERVER_NAME, Role, TlsFiles
from estiba.v1 import control_pb2, control_pb2_grpc
from tests.support.certificates import issue
from tests.support.estibad import ControlPlane, control_plane, eventually


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane"), members=1) as running:
        yield running


@pytest.fixture(autouse=True)
async def serving(plane: ControlPlane) -> None:
    async with plane.control() as control:
        await control.GetCluster(control_pb2.GetClusterRequest())


@pytest.fixture(params=["none", "other", "ended"])
def shown(
    request: pytest.FixtureRequest, plane: ControlPlane, tmp_path: Path
) -> tuple[TlsFiles | None, str]:
    """Return what somebody shows, and what is said of it."""
    ended = plane.certificates.ended(Holder(Role.USER, "admin"))
    known: dict[str, tuple[TlsFiles | None, str]] = {
        "none": (None, "it showed no certificate"),
        "other": (issue(tmp_path).of("user"), "another authority signed its certificate"),
        "ended": (ended, "its certificate has ended"),
    }
    return known[str(request.param)]


def context_of(plane: ControlPlane, tls: TlsFiles | None) -> ssl.SSLContext:
    """Trust the cluster, and show a certificate or none."""
    context = ssl.create_default_context(cafile=str(plane.certificates.of("user").ca))
    if tls is not None:
        tls.read().load_into(context)
    return context


async def is_told(plane: ControlPlane, listener: str, reason: str) -> None:
    member = plane.members[0]
    line = re.compile(
        rf"WARNING estibad estiba\.kit\.refusals: refused a handshake at {listener}"
        rf" from 127\.0\.0\.1:\d+: {re.escape(reason)}"
    )

    async def is_logged() -> bool:
        return line.search(member.log) is not None

    await eventually(is_logged, within_s=5, what=f"the log says: {reason}")


async def counted(plane: ControlPlane, listener: str) -> float:
    return await plane.metric(f'estiba_refused_handshakes_total{{listener="{listener}"}}')


async def test_the_api_serves_nobody_without_a_good_certificate(
    plane: ControlPlane, shown: tuple[TlsFiles | None, str]
) -> None:
    tls, reason = shown
    before = await counted(plane, "api")
    ours = plane.certificates.of("user").ca.read_bytes()
    credentials = grpc.ssl_channel_credentials(
        ours,
        *((tls.key.read_bytes(), tls.cert.read_bytes()) if tls is not None else (None, None)),
    )

    async def is_logged() -> bool:
        # Again, since only one of a second is said.
        async with aio.secure_channel(
            plane.members[0].address, credentials, options=MEMBER_CHANNEL_OPTIONS
        ) as channel:
            with pytest.raises(aio.AioRpcError) as refused:
                await control_pb2_grpc.ControlStub(channel).GetCluster(
                    control_pb2.GetClusterRequest(), timeout=10
                )
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        return re.search(f"handshake at api .*{reason}", plane.members[0].log) is not None

    await eventually(is_logged, within_s=20, what="the refusal is logged")
    assert await counted(plane, "api") > before
    await is_told(plane, "api", reason)


async def test_the_web_server_serves_nobody_without_a_good_certificate(
    plane: ControlPlane, shown: tuple[TlsFiles | None, str]
) -> None:
    tls, reason = shown
    before = await counted(plane, "web")

    async def is_logged() -> bool:
        answer = await asyncio.to_thread(ask, plane.members[0].web_port, context_of(plane, tls))
        assert not answer
        return re.search(f"handshake at web .*{reason}", plane.members[0].log) is not None

    await eventually(is_logged, within_s=20, what="the refusal is logged")
    assert await counted(plane, "web") > before
    await is_told(plane, "web", reason)


async def test_etcd_answers_nobody_without_a_certificate_of_its_own_authority(
    plane: ControlPlane, shown: tuple[TlsFiles | None, str]
) -> None:
    tls, _ = shown
    assert plane.etcd.tls is not None
    for each in (tls, plane.certificates.of("n1"), plane.certificates.of("estibad-1")):
        context = ssl.create_default_context(cafile=str(plane.etcd.tls.ca))
        if each is not None:
            each.read().load_into(context)
        assert not await asyncio.to_thread(ask, plane.etcd.port, context, "127.0.0.1")
    own = ssl.create_default_context(cafile=str(plane.etcd.tls.ca))
    plane.etcd.tls.read().load_into(own)
    assert await asyncio.to_thread(ask, plane.etcd.port, own, "127.0.0.1")


async def test_the_trace_of_handshakes_is_in_no_log(plane: ControlPlane) -> None:
    async with plane.control() as control:
        await control.GetCluster(control_pb2.GetClusterRequest())
    assert "handshaker" not in plane.members[0].log
    assert "endpoint_peer_address" not in plane.members[0].log


def ask(port: int, context: ssl.SSLContext, name: str = MEMBER_SERVER_NAME) -> bytes:
    """Ask for a page; return the beginning of the answer, b"" if the handshake was refused."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            secured.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return secured.recv(100)
    except (ssl.SSLError, ConnectionError):
        return b""


async def test_a_stranger_writes_no_line_of_our_log(plane: ControlPlane) -> None:
    context = context_of(plane, plane.certificates.of("user"))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    forged = "x\nE1124 16:00:00.000000    1 x.cc:1] forged\n2026 INFO estibad forged"

    def knock() -> None:
        with (
            socket.create_connection(("127.0.0.1", plane.members[0].port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=forged) as secured,
        ):
            secured.recv(1)

    await asyncio.to_thread(knock)
    # Whoever is refused after it is read after it.
    await test_the_api_serves_nobody_without_a_good_certificate(
        plane, (None, "it showed no certificate")
    )
    assert "forged" not in plane.members[0].log
