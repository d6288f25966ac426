"""Certificates are renewed by their holders alone, and taken over by a member that runs."""

import asyncio
import datetime
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509
from grpc import aio

from controlplane.authority import issuing
from controlplane.authority.issuing import Holder
from estiba.kit import pem
from estiba.kit.tls import MEMBER_SERVER_NAME, Identity, Role, TlsFiles, identity_of
from estiba.v1 import certificates_pb2, certificates_pb2_grpc
from estiba.v1 import control_pb2 as control
from estiba.v1 import dispatcher_pb2 as dispatch
from tests.support.certificates import issue
from tests.support.estibad import PROGRAM, ControlPlane, RemoteSessions, control_plane, eventually
from tests.support.joiner import channel_of

if TYPE_CHECKING:
    from estiba.v1.certificates_pb2_grpc import CertificatesAsyncStub


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("plane")
    with control_plane(folder, with_authority=1) as running:
        yield running


@asynccontextmanager
async def certificates(
    plane: ControlPlane, tls: TlsFiles, *, member: int = 0
) -> AsyncIterator["CertificatesAsyncStub"]:
    async with channel_of(plane.members[member].address, tls) as channel:
        stub: CertificatesAsyncStub = certificates_pb2_grpc.CertificatesStub(channel)
        yield stub


def request_of(holder: Identity, *, name: str = "") -> tuple[bytes, certificates_pb2.RenewRequest]:
    """Return a new key, and what asks for its certificate."""
    key, request = pem.make_key_and_request(
        name=name or holder.name, role=holder.role, hostname=holder.hostname
    )
    return key, certificates_pb2.RenewRequest(request_pem=request)


def holder_of(tls: TlsFiles) -> Identity:
    return identity_of(tls.cert.read_bytes())


async def refused(
    plane: ControlPlane, tls: TlsFiles, request: certificates_pb2.RenewRequest
) -> tuple[grpc.StatusCode, str]:
    async with certificates(plane, tls) as stub:
        with pytest.raises(aio.AioRpcError) as no:
            await stub.Renew(request)
    return no.value.code(), no.value.details() or ""


# ------------------------------------------------------------------ renewal


@pytest.mark.parametrize("holder", ["n1", "user", "metrics"])
async def test_a_holder_gets_a_certificate_for_a_new_key_that_says_the_same(
    plane: ControlPlane, holder: str, tmp_path: Path
) -> None:
    tls = plane.certificates.of(holder)
    identity = holder_of(tls)
    key, request = request_of(identity)

    async with certificates(plane, tls) as stub:
        answer = await stub.Renew(request)

    renewed = x509.load_pem_x509_certificate(answer.certificate_pem)
    former = x509.load_pem_x509_certificate(tls.cert.read_bytes())
    assert renewed.subject == former.subject
    assert renewed.public_key() == pem.load_key(key).public_key() != former.public_key()
    assert renewed.not_valid_after_utc >= former.not_valid_after_utc
    assert answer.authority_pem == tls.ca.read_bytes()
    for extension in (x509.ExtendedKeyUsage, x509.BasicConstraints):
        assert renewed.extensions.get_extension_for_class(
            extension
        ) == former.extensions.get_extension_for_class(extension)
    # And it is good for the next time.
    file = tmp_path / "renewed.pem"
    file.write_bytes(answer.certificate_pem + key)
    async with certificates(plane, TlsFiles(tls.ca, file, file)) as stub:
        await stub.Renew(request_of(identity)[1])


async def test_a_certificate_is_not_renewed_for_another_id_role_or_host_name(
    plane: ControlPlane,
) -> None:
    tls = plane.certificates.of("n1")
    before = await plane.metric("estiba_denied_calls_total")
    for wanted in (
        Identity(Role.NODE, "node-2", "n1"),
        Identity(Role.USER, "node-1", "n1"),
        Identity(Role.MEMBER, "node-1", "n1"),
        Identity(Role.NODE, "node-1", "n2"),
        Identity(Role.NODE, "node-1"),
    ):
        code, sentence = await refused(plane, tls, request_of(wanted)[1])
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert sentence.endswith("a certificate is renewed by its holder")
    assert await plane.metric("estiba_denied_calls_total") == before + 5
    assert "refused estiba.v1.Certificates/Renew to ipv4:127.0.0.1:" in plane.members[0].log


async def test_what_is_no_request_is_refused_in_a_sentence(plane: ControlPlane) -> None:
    tls = plane.certificates.of("n1")
    for text in (b"", b"nothing", b"x" * 10_000, tls.cert.read_bytes()):
        request = certificates_pb2.RenewRequest(request_pem=text)
        code, sentence = await refused(plane, tls, request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence.startswith("request_pem: ")


async def test_a_member_renews_nothing_over_the_network(plane: ControlPlane) -> None:
    tls = plane.certificates.of("estibad-2")
    code, sentence = await refused(plane, tls, request_of(holder_of(tls))[1])
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert sentence == "member:estibad-2 may not call estiba.v1.Certificates/Renew"


async def test_a_member_without_the_authority_says_that_another_may(plane: ControlPlane) -> None:
    tls = plane.certificates.of("n1")
    async with certificates(plane, tls, member=1) as stub:
        with pytest.raises(aio.AioRpcError) as no:
            await stub.Renew(request_of(holder_of(tls))[1])
    assert no.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (no.value.details() or "").startswith(
        "member estibad-2 holds no authority: ask another one"
    )


async def test_a_node_that_was_removed_gets_no_new_certificate_and_no_session(
    plane: ControlPlane,
) -> None:
    tls = plane.certificates.made("goner", Holder(Role.NODE, "goner", "goner"))
    async with channel_of(plane.members[0].address, tls) as channel:
        await once_in_session(channel)
        async with plane.control() as users:
            await users.RemoveNode(control.RemoveNodeRequest(node="goner", force=True))
        before = await plane.metric("estiba_denied_calls_total")
        stub: CertificatesAsyncStub = certificates_pb2_grpc.CertificatesStub(channel)
        with pytest.raises(aio.AioRpcError) as no:
            await stub.Renew(request_of(holder_of(tls))[1])
        call = RemoteSessions(channel).stub.Session()
        await call.write(dispatch.AgentMessage(hello=dispatch.Hello()))
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED

    assert no.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert no.value.details() == "node goner was removed from the cluster"
    assert await plane.metric("estiba_denied_calls_total") == before + 2
    assert "Renew to ipv4:127.0.0.1" in plane.members[0].log


async def test_a_session_ends_with_the_certificate_that_it_began_with(
    plane: ControlPlane,
) -> None:
    before = await denied_so_far(plane)
    identity = Identity(Role.NODE, "short-lived", "short-lived")
    # Less than a node may be silent.
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=4)
    tls = plane.certificates.made(
        "short-lived",
        Holder(identity.role, identity.name, identity.hostname),
        at=ends + issuing.BEFORE - issuing.LIFE,
    )
    async with channel_of(plane.members[0].address, tls) as channel:
        call = RemoteSessions(channel).stub.Session()
        await call.write(dispatch.AgentMessage(hello=dispatch.Hello()))
        assert isinstance(await call.read(), dispatch.MemberMessage)
        # What is not read holds the status back.
        with suppress(aio.AioRpcError):
            while await call.read():
                pass
        # It is no PERMISSION_DENIED, on which an agent stops its containers.
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "the certificate of node:short-lived ended on" in (await call.details() or "")

        # Nor is anything else answered on the connection that has outlived it.
        stub: CertificatesAsyncStub = certificates_pb2_grpc.CertificatesStub(channel)
        with pytest.raises(aio.AioRpcError, match="UNAUTHENTICATED"):
            await stub.Renew(request_of(identity)[1])
    assert await plane.metric("estiba_denied_calls_total") == before + 2


async def denied_so_far(plane: ControlPlane) -> float:
    async with plane.control():
        return await plane.metric("estiba_denied_calls_total")


async def once_in_session(channel: aio.Channel) -> None:
    call = RemoteSessions(channel).stub.Session()
    await call.write(dispatch.AgentMessage(hello=dispatch.Hello()))
    welcome = await call.read()
    assert isinstance(welcome, dispatch.MemberMessage)
    call.cancel()


# ------------------------------------------------------------------ a member's own


async def test_a_member_takes_over_new_certificates_while_it_serves(plane: ControlPlane) -> None:
    member = plane.members[0]
    file = plane.certificates.of(member.name).cert
    former = issuing.LIFE.total_seconds()
    series = 'estiba_certificate_remaining_seconds{certificate="member"}'
    assert former - 3600 < await plane.metric(series) <= former
    listeners = (member.port, member.web_port, member.join_port)
    before = [await asyncio.to_thread(serial_at, port, plane) for port in listeners]
    assert len(set(before)) == 1

    async with plane.control() as lasting:
        await lasting.GetCluster(control.GetClusterRequest())
        text = issuing.issue_with_key(
            plane.certificates.authority,
            Holder(Role.MEMBER, member.name),
            datetime.datetime.now(datetime.UTC),
            life=2 * issuing.LIFE,
        )
        pem.replace_file(file, text)

        async def is_shown_everywhere() -> bool:
            shown = [await asyncio.to_thread(serial_at, port, plane) for port in listeners]
            return set(shown) == {x509.load_pem_x509_certificate(text).serial_number}

        await eventually(is_shown_everywhere, within_s=30, what="the new certificate is shown")
        # Who was connected is none the wiser, and the other member is reached with the new one.
        await lasting.GetCluster(control.GetClusterRequest())
    assert await plane.metric(series) > former
    assert f"{file}: a new certificate, for 1" in member.log
    assert await plane.metric(series.replace("member", "etcd-client")) > 0


async def test_a_certificate_that_is_no_good_leaves_the_former_in_use(
    plane: ControlPlane,
) -> None:
    member = plane.members[1]
    file = plane.certificates.of(member.name).cert
    before = await asyncio.to_thread(serial_at, member.port, plane)
    pem.replace_file(file, b"cut short")

    async def is_said() -> bool:
        return f"the former certificate stays in use: {file}: holds no" in member.log

    await eventually(is_said, within_s=30, what="the log says so")
    assert await asyncio.to_thread(serial_at, member.port, plane) == before


def test_a_member_whose_authority_is_another_says_so_and_does_not_start(
    plane: ControlPlane, tmp_path: Path
) -> None:
    folder = plane.members[0].folder
    other = issue(tmp_path)
    text = (folder / "estibad-1.toml").read_text()
    config = tmp_path / "estibad.toml"
    for part, words in (
        (
            other.of("user").ca,
            r"authority\.cert: .* has not signed this member's certificate, .*estibad-1\.pem",
        ),
        (tmp_path / "absent.pem", r"absent\.pem: No such file or directory"),
    ):
        key = part.with_name("ca-key.pem")
        keep, _, _ = text.partition("[authority]")
        _, _, rest = text.partition("[tls]")
        config.write_text(f'{keep}[authority]\ncert = "{part}"\nkey = "{key}"\n[tls]{rest}')
        ended = subprocess.run(
            [PROGRAM, "--config", config], capture_output=True, text=True, timeout=30, check=False
        )
        assert ended.returncode == 1
        assert re.fullmatch(f"estibad: .*{words}\n", ended.stderr)


def serial_at(port: int, plane: ControlPlane) -> int:
    """Return the number of the certificate that is shown."""
    context = plane.certificates.of("user").client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=MEMBER_SERVER_NAME) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number
