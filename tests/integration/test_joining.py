"""Machines join by token: real members, a real etcd, real TLS, and whoever tries to get in."""

import asyncio
import datetime
import os
import random
import signal
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc import aio

from controlplane.authority import issuing
from controlplane.authority.issuing import Holder
from controlplane.store import keys
from controlplane.store.etcd import EtcdStore
from estiba.kit import jointoken
from estiba.kit.clock import SystemClock
from estiba.kit.jointoken import JoinToken
from estiba.kit.tls import MEMBER_SERVER_NAME, Role, TlsFiles, identity_of
from estiba.v1 import control_pb2 as pb
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from tests.support.agents import SimulatedAgent
from tests.support.certificates import issue
from tests.support.estibad import ControlPlane, RemoteSessions, control_plane, eventually
from tests.support.joiner import Joiner, NotAdmittedError, channel_of

if TYPE_CHECKING:
    from estiba.v1.control_pb2_grpc import ControlAsyncStub as Control


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture
async def control(plane: ControlPlane) -> AsyncIterator["Control"]:
    async with plane.control() as stub:
        yield stub


@pytest.fixture
def joiner(plane: ControlPlane) -> Joiner:
    return Joiner(plane.certificates.of("user").ca)


async def make_token(control: "Control", *, uses: int = 10, life_s: float = 3600) -> JoinToken:
    rng = random.SystemRandom()
    request = pb.CreateJoinTokenRequest(
        id=jointoken.letters(rng.randbytes(jointoken.ID_BYTES)),
        secret=jointoken.letters(rng.randbytes(jointoken.SECRET_BYTES)),
        uses=uses,
    )
    request.life.FromMicroseconds(round(life_s * 1e6))
    return jointoken.parse((await control.CreateJoinToken(request)).text)


async def admitted_by(control: "Control", token: JoinToken) -> list[str]:
    found = (await control.ListJoinTokens(pb.ListJoinTokensRequest())).tokens
    return next(list(each.admitted) for each in found if each.metadata.id == token.id)


async def refused(joiner: Joiner, plane: ControlPlane, token: JoinToken) -> str:
    """Try to join, and return the sentence that says why not."""
    with pytest.raises(NotAdmittedError) as no:
        await joiner.join(plane.members[0].join_address, token)
    assert no.value.status == 403
    return no.value.sentence


async def joins_counted(plane: ControlPlane, outcome: str) -> float:
    return await plane.metric(f'estiba_join_requests_total{{outcome="{outcome}"}}')


@asynccontextmanager
async def agent_with(tls: TlsFiles, plane: ControlPlane, node_id: str) -> AsyncIterator[None]:
    """Run an agent that has joined."""
    async with channel_of(plane.members[0].address, tls) as channel:
        sessions = RemoteSessions(channel)
        agent = SimulatedAgent(
            node_id, lambda: [sessions], clock=SystemClock(), rng=random.Random(1)
        )
        running = asyncio.create_task(agent.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


# ------------------------------------------------------------------ the way in


async def test_a_machine_joins_and_its_agent_has_a_session(
    plane: ControlPlane, control: "Control", joiner: Joiner, tmp_path: Path
) -> None:
    token = await make_token(control)
    joiner.hostname = "first"

    response = await joiner.join(plane.members[0].join_address, token)

    assert response.node_id == joiner.id
    assert response.cluster_name == "test"
    assert list(response.member_addresses) == sorted(each.address for each in plane.members)
    identity = identity_of(response.certificate_pem)
    assert (identity.role, identity.name, identity.hostname) == (Role.NODE, joiner.id, "first")
    node = await control.GetNode(pb.GetNodeRequest(node=joiner.id))
    assert node.metadata.name == "first"
    assert node.metadata.changed_by == f"join-token:{token.id}"
    assert await admitted_by(control, token) == [joiner.id]

    async with agent_with(joiner.files(tmp_path, response), plane, joiner.id):

        async def is_ready() -> bool:
            found = await control.GetNode(pb.GetNodeRequest(node=joiner.id))
            return found.status.state == v1.NODE_STATE_READY

        await eventually(is_ready, within_s=20, what="the node that joined is ready")


async def test_what_is_read_first_is_the_authority_that_the_token_names(
    plane: ControlPlane, control: "Control", tmp_path: Path
) -> None:
    token = await make_token(control)
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"https://{plane.members[0].join_address}/v1/authority", ssl=unverified
        ) as response,
    ):
        read = x509.load_pem_x509_certificate(await response.read())
        assert "Date" in response.headers

    assert jointoken.digest_of(read.public_bytes(Encoding.DER)) == token.digest
    # Whoever stands in between has no authority of this digest to show.
    assert issue(tmp_path).authority.digest != token.digest


async def test_a_token_of_one_member_admits_at_the_other(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control)
    joiner.hostname = "elsewhere"
    assert (await joiner.join(plane.members[1].join_address, token)).node_id == joiner.id


async def test_a_join_that_is_sent_again_counts_once(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control, uses=1)
    joiner.hostname = "again"
    answers = [await joiner.join(each.join_address, token) for each in plane.members for _ in "12"]

    assert {answer.node_id for answer in answers} == {joiner.id}
    assert await admitted_by(control, token) == [joiner.id]
    assert await joins_counted(plane, "again") >= 1


async def test_machines_of_one_host_name_get_names_of_their_own(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control)
    other = Joiner(joiner.ca, hostname="twin")
    joiner.hostname = "twin"
    for each in (joiner, other):
        await each.join(plane.members[0].join_address, token)

    node = await control.GetNode(pb.GetNodeRequest(node=other.id))
    assert node.metadata.name == f"twin-{other.id[:8]}"


async def test_a_machine_that_returns_with_its_key_is_the_node_it_was(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control)
    ended = plane.certificates.ended(Holder(Role.NODE, "of-old", "old"))
    returning = Joiner(
        joiner.ca, "old", key_pem=ended.key.read_bytes(), former_pem=ended.cert.read_bytes()
    )

    response = await returning.join(plane.members[0].join_address, token)

    assert response.node_id == "of-old"
    assert identity_of(response.certificate_pem).name == "of-old"
    assert await admitted_by(control, token) == ["of-old"]


# ------------------------------------------------------------------ whoever must stay out


async def test_an_unknown_token_and_a_wrong_secret_read_the_same(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control)
    before = await joins_counted(plane, "unknown_token")
    sentences = {
        await refused(joiner, plane, forged)
        for forged in (
            JoinToken(token.digest, token.id, "a" * 26),
            JoinToken(token.digest, "a" * 8, token.secret),
            JoinToken(token.digest, "../cluster", token.secret),
            JoinToken(token.digest, "", ""),
        )
    }

    assert sentences == {
        "this cluster has no such token: make another with `estiba cluster token create`"
    }
    assert await joins_counted(plane, "unknown_token") == before + 4
    assert await admitted_by(control, token) == []

    async def is_logged() -> bool:
        # At most once a second.
        await refused(joiner, plane, JoinToken(token.digest, "a" * 8, token.secret))
        line = "refused to admit machine-1 at 127.0.0.1: this cluster has no such token"
        return line in plane.members[0].log

    await eventually(is_logged, within_s=5, what="the refusal is logged")


async def test_a_token_that_is_used_up_admits_nobody_else(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control, uses=1)
    await Joiner(joiner.ca, "the-last").join(plane.members[0].join_address, token)
    before = await joins_counted(plane, "used_up")

    assert "has admitted the 1 node that it was for" in await refused(joiner, plane, token)
    assert await joins_counted(plane, "used_up") == before + 1
    await is_no_node(control, joiner)


async def test_a_token_that_has_expired_admits_nobody_not_even_again(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    made_at_s = time.time()
    token = await make_token(control, life_s=2)
    await joiner.join(plane.members[0].join_address, token)
    await asyncio.sleep(max(0.0, made_at_s + 3 - time.time()))

    for each in (joiner, Joiner(joiner.ca)):
        assert "the token expired on" in await refused(each, plane, token)


async def test_a_token_that_was_removed_admits_nobody(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control)
    await control.RemoveJoinToken(pb.RemoveJoinTokenRequest(id=token.id))

    assert "no such token" in await refused(joiner, plane, token)
    with pytest.raises(aio.AioRpcError) as absent:
        await control.RemoveJoinToken(pb.RemoveJoinTokenRequest(id=token.id))
    assert absent.value.code() is grpc.StatusCode.NOT_FOUND


async def test_of_many_that_race_for_the_last_uses_just_as_many_get_in(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control, uses=3)
    racers = [Joiner(joiner.ca, f"racer-{number}") for number in range(12)]

    async def race(index: int, racer: Joiner) -> str:
        try:
            response = await racer.join(plane.members[index % 2].join_address, token)
        except NotAdmittedError as no:
            return no.sentence
        return response.node_id

    ended = await asyncio.gather(*(race(*each) for each in enumerate(racers)))

    ids = {racer.id for racer in racers}
    winners = sorted(ids.intersection(ended))
    assert len(winners) == 3
    assert {sentence.partition(":")[0] for sentence in ended if sentence not in ids} == {
        "the token has admitted the 3 nodes that it was for"
    }
    assert sorted(await admitted_by(control, token)) == winners
    present = (await control.ListNodes(pb.ListNodesRequest())).nodes
    named = sorted(each.metadata.id for each in present if "racer-" in each.metadata.name)
    assert named == winners


async def test_a_node_that_was_removed_joins_only_with_a_new_key(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control)
    joiner.hostname = "goner"
    response = await joiner.join(plane.members[0].join_address, token)
    await control.RemoveNode(pb.RemoveNodeRequest(node=joiner.id))
    before = await joins_counted(plane, "removed_node")

    sentence = await refused(joiner, plane, token)
    assert sentence == (
        f"node {joiner.id} was removed from the cluster: run `estiba node leave` on the machine,"
        " then join again with a new key"
    )
    joiner.former_pem = response.certificate_pem
    assert await refused(joiner, plane, token) == sentence
    assert await joins_counted(plane, "removed_node") == before + 2
    await is_no_node(control, joiner)
    await Joiner(joiner.ca, "goner").join(plane.members[0].join_address, token)


async def test_a_former_certificate_of_somebody_else_gives_nobody_their_id(
    plane: ControlPlane, control: "Control", joiner: Joiner, tmp_path: Path
) -> None:
    token = await make_token(control)
    foreign = issuing.issue_with_key(
        issue(tmp_path).authority, Holder(Role.NODE, "node-1"), datetime.datetime.now(datetime.UTC)
    )
    for former, key, words in (
        (plane.certificates.of("n1").cert.read_bytes(), joiner.key_pem, "another key"),
        (foreign, foreign, "another cluster"),
    ):
        thief = Joiner(joiner.ca, key_pem=key, former_pem=former)
        with pytest.raises(NotAdmittedError, match=words) as no:
            await thief.join(plane.members[0].join_address, token)
        assert no.value.status == 400
    assert await admitted_by(control, token) == []


async def test_a_node_may_not_claim_the_host_name_of_another(
    plane: ControlPlane, control: "Control", joiner: Joiner, tmp_path: Path
) -> None:
    token = await make_token(control)
    joiner.hostname = "honest"
    response = await joiner.join(plane.members[0].join_address, token)
    before = await denied(plane)
    async with channel_of(plane.members[0].address, joiner.files(tmp_path, response)) as channel:
        sessions = RemoteSessions(channel)
        said = dispatch.Hello(description=v1.NodeDescription(hostname="somebody-else"))
        call = sessions.stub.Session()
        await call.write(dispatch.AgentMessage(hello=said))
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert await call.details() == (
            f"node {joiner.id} claims the host name somebody-else, its certificate is for honest:"
            " set hostname to honest in its configuration, or let it join again"
        )
    assert await denied(plane) == before + 1
    assert "refused a session: node" in plane.members[0].log


# ------------------------------------------------------------------ whatever strangers send


async def test_what_is_no_request_is_refused_in_a_sentence(
    plane: ControlPlane, joiner: Joiner
) -> None:
    address = plane.members[0].join_address
    for body in (b"", b"nothing", b"\xff", b'{"token_secret": 1}', b"x" * 70_000):
        status, answer = await joiner.post(address, data=body)
        assert status == 400
        assert answer == {"error": "the body is no JoinRequest in JSON of at most 65536 bytes"}
    status, answer = await joiner.post(address, json={"hostname": "a b"})
    assert (status, answer["error"][:10]) == (400, "hostname: ")


async def test_a_body_in_an_encoding_that_is_none_is_refused_in_a_sentence(
    plane: ControlPlane, joiner: Joiner
) -> None:
    address = plane.members[0].join_address
    for headers in (
        {"Content-Encoding": "gzip"},
        {"Content-Type": "application/json; charset=undefined"},
        {"Content-Type": "application/json; charset=idna"},
    ):
        status, answer = await joiner.post(address, data=b"\xff", headers=headers)
        assert status == 400
        assert answer == {"error": "the body is no JoinRequest in JSON of at most 65536 bytes"}


async def test_strangers_who_break_off_or_speak_no_http_fill_no_log(
    plane: ControlPlane, joiner: Joiner
) -> None:
    context = ssl.create_default_context(cafile=str(joiner.ca))
    for said in (
        b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        b"\0\1\r\n\r\n",
        b"GET http://[bad/ HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        _, writer = await asyncio.open_connection(
            *("127.0.0.1", plane.members[0].join_port),
            ssl=context,
            server_hostname=MEMBER_SERVER_NAME,
        )
        writer.write(said)
        await writer.drain()
        writer.close()
        # The answer may come after we have gone.
        with suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()

    async def is_said() -> bool:
        return "a request from 127.0.0.1 is no HTTP: " in plane.members[0].log

    await eventually(is_said, within_s=5, what="that no HTTP was spoken is logged")
    assert "Traceback" not in plane.members[0].log


async def test_other_paths_and_methods_are_refused_in_a_sentence(
    plane: ControlPlane, joiner: Joiner
) -> None:
    context = ssl.create_default_context(cafile=str(joiner.ca))
    async with aiohttp.ClientSession(f"https://{plane.members[0].join_address}") as session:
        for method, path, status in (
            ("GET", "/metrics", 404),
            ("GET", "/v1/join", 405),
            ("POST", "/v1/authority", 405),
        ):
            async with session.request(
                method, path, ssl=context, server_hostname=MEMBER_SERVER_NAME
            ) as response:
                assert response.status == status
                assert (await response.json())["error"].startswith(f"{method} {path}: ")


async def test_the_listener_for_joining_serves_nothing_else_and_no_clear_text(
    plane: ControlPlane,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.members[0].join_port)
    writer.write(b"GET /v1/authority HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()

    async def is_counted() -> bool:
        return await plane.metric('estiba_refused_handshakes_total{listener="join"}') >= 1

    await eventually(is_counted, within_s=5, what="the handshake is counted")
    assert "refused a handshake at join from 127.0.0.1:" in plane.members[0].log


async def test_secrets_are_in_no_log_and_not_in_the_store(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control)
    joiner.hostname = "discreet"
    await joiner.join(plane.members[0].join_address, token)
    await refused(joiner, plane, JoinToken(token.digest, "a" * 8, token.secret))

    stored = (await control.ListJoinTokens(pb.ListJoinTokensRequest())).tokens
    assert all(not each.secret_sha256 for each in stored)
    store = EtcdStore([plane.etcd.endpoint], tls=plane.etcd.tls)
    try:
        entry = await store.get(keys.join_token(token.id))
    finally:
        await store.close()
    assert entry is not None
    assert token.secret.encode() not in entry.value
    # It hangs on a lease that outlives it, so the store forgets it some time after.
    assert entry.lease
    assert all(token.secret not in member.log for member in plane.members)


async def test_while_the_store_is_away_nobody_is_half_admitted(
    plane: ControlPlane, control: "Control", joiner: Joiner
) -> None:
    token = await make_token(control, uses=1)
    joiner.hostname = "patient"
    before = await joins_counted(plane, "unavailable")
    os.kill(plane.etcd.pid, signal.SIGSTOP)
    try:
        with pytest.raises(NotAdmittedError) as no:
            await joiner.join(plane.members[0].join_address, token)
    finally:
        os.kill(plane.etcd.pid, signal.SIGCONT)
    assert no.value.status == 503
    assert no.value.sentence == (
        "the cluster's store does not answer: try again, with the same key"
    )
    assert await joins_counted(plane, "unavailable") == before + 1

    async def has_joined() -> bool:
        try:
            await joiner.join(plane.members[0].join_address, token)
        except NotAdmittedError as still:
            if still.status != 503:
                raise
            return False
        return True

    await eventually(has_joined, within_s=30, what="the machine joins once the store is back")
    async with plane.control() as fresh:
        assert await admitted_by(fresh, token) == [joiner.id]
        await fresh.GetNode(pb.GetNodeRequest(node=joiner.id))


# ------------------------------------------------------------------ tokens


async def test_a_token_that_is_made_again_is_the_same_and_another_of_its_id_is_refused(
    plane: ControlPlane, control: "Control"
) -> None:
    request = pb.CreateJoinTokenRequest(id="b" * 8, secret="c" * 26)
    first = await control.CreateJoinToken(request)
    async with plane.control(member=1) as other:
        assert await other.CreateJoinToken(request) == first
        with pytest.raises(aio.AioRpcError) as taken:
            await other.CreateJoinToken(pb.CreateJoinTokenRequest(id="b" * 8, secret="d" * 26))

    assert taken.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert list(first.join_addresses) == [each.join_address for each in plane.members]
    assert first.token.uses == 10
    lasts_s = first.token.expires_at.seconds - first.token.metadata.created_at.seconds
    assert lasts_s == 24 * 3600
    assert first.token.metadata.changed_by == "user:admin"


async def test_every_fault_of_a_token_is_told_at_once(control: "Control") -> None:
    request = pb.CreateJoinTokenRequest(id="x", secret="hunter2", uses=10_001)
    request.life.FromSeconds(31 * 86400)
    with pytest.raises(aio.AioRpcError) as no:
        await control.CreateJoinToken(request)

    assert no.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = no.value.details() or ""
    assert [line.partition(":")[0] for line in told.splitlines()] == [
        *("id", "secret", "life", "uses")
    ]
    assert "hunter2" not in told


async def test_a_node_may_not_make_tokens(plane: ControlPlane) -> None:
    before = await denied(plane)
    async with plane.control("n1") as control:
        for call in (
            control.CreateJoinToken(pb.CreateJoinTokenRequest()),
            control.ListJoinTokens(pb.ListJoinTokensRequest()),
            control.RemoveJoinToken(pb.RemoveJoinTokenRequest()),
        ):
            with pytest.raises(aio.AioRpcError) as no:
                await call
            assert no.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert (no.value.details() or "").startswith("node:node-1 may not call estiba.v1.")
    assert await denied(plane) == before + 3


async def is_no_node(control: "Control", joiner: Joiner) -> None:
    with pytest.raises(aio.AioRpcError) as absent:
        await control.GetNode(pb.GetNodeRequest(node=joiner.id))
    assert absent.value.code() is grpc.StatusCode.NOT_FOUND


async def denied(plane: ControlPlane) -> float:
    return await plane.metric("estiba_denied_calls_total")
