"""The command line against members that fail, over real gRPC and real certificates."""

import datetime
import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.authority.files import ensure_holder, open_authority
from controlplane.authority.issuing import Holder
from controlplane.cli import listing, local
from controlplane.cli.connection import Connection, NoAnswerError, RefusedError, Target, find
from controlplane.cli.dev import authority, plan, state
from controlplane.cli.errors import CliError
from controlplane.cli.setup import texts
from controlplane.cli.setup.places import Places
from estiba.kit.tls import Role, TlsFiles
from estiba.v1 import control_pb2, types_pb2


class Member:
    """Answers as it was told to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.calls = 0
        self.answer: Callable[[grpc.ServicerContext], None] = lambda _: None

    def handler(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetService": grpc.unary_unary_rpc_method_handler(
                self._service,
                request_deserializer=control_pb2.GetServiceRequest.FromString,
                response_serializer=types_pb2.Service.SerializeToString,
            ),
            "ListServices": grpc.unary_unary_rpc_method_handler(
                self._services,
                request_deserializer=control_pb2.ListServicesRequest.FromString,
                response_serializer=control_pb2.ListServicesResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler("estiba.v1.Control", methods)

    def _service(
        self, request: control_pb2.GetServiceRequest, context: grpc.ServicerContext
    ) -> types_pb2.Service:
        self.calls += 1
        self.answer(context)
        return types_pb2.Service(metadata=types_pb2.Metadata(id=self._name, name=request.service))

    def _services(
        self, request: control_pb2.ListServicesRequest, context: grpc.ServicerContext
    ) -> control_pb2.ListServicesResponse:
        self.calls += 1
        if request.page_token == "old" and self.calls == 2:
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "the page is too old")
        service = types_pb2.Service(metadata=types_pb2.Metadata(id=f"s{self.calls}"))
        token = "" if request.page_token else "old"
        return control_pb2.ListServicesResponse(services=[service], next_page_token=token)


@pytest.fixture
def certified(tmp_path: Path) -> plan.Layout:
    layout = state.make(tmp_path, 1)
    authority.issue_all(layout, datetime.datetime.now(datetime.UTC))
    return layout


def files(layout: plan.Layout, name: str) -> TlsFiles:
    return layout.tls("ca", name)


@contextmanager
def serving(layout: plan.Layout, member: Member, certificate: str = "estibad-1") -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((member.handler(),))
    port = server.add_secure_port("127.0.0.1:0", files(layout, certificate).server_credentials())
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()


@contextmanager
def connected(layout: plan.Layout, *servers: str) -> Iterator[Connection]:
    connection = Connection(Target(servers, files(layout, "user")))
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def dead_address() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


def test_a_member_that_says_nothing_is_passed_over(
    certified: plan.Layout, dead_address: str
) -> None:
    with (
        serving(certified, Member("b")) as second,
        connected(certified, dead_address, second) as connection,
    ):
        assert listing.service(connection, "web").metadata.id == "b"


def test_a_member_that_is_unavailable_is_passed_over_and_the_next_is_kept(
    certified: plan.Layout,
) -> None:
    first, second = Member("a"), Member("b")
    first.answer = lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "no leader")
    with (
        serving(certified, first) as one,
        serving(certified, second) as two,
        connected(certified, one, two) as connection,
    ):
        assert listing.service(connection, "web").metadata.id == "b"
        assert listing.service(connection, "web").metadata.id == "b"
    assert (first.calls, second.calls) == (1, 2)


def test_a_refusal_is_the_members_sentence_and_is_not_tried_elsewhere(
    certified: plan.Layout,
) -> None:
    first, second = Member("a"), Member("b")
    first.answer = lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "no service web")
    with (
        serving(certified, first) as one,
        serving(certified, second) as two,
        connected(certified, one, two) as connection,
        pytest.raises(RefusedError, match=r"^no service web$"),
    ):
        listing.service(connection, "web")
    assert second.calls == 0


def test_when_no_member_answers_all_are_named(certified: plan.Layout, dead_address: str) -> None:
    with (
        connected(certified, dead_address) as connection,
        pytest.raises(NoAnswerError, match=dead_address),
    ):
        connection.call(lambda stub: stub.GetService, control_pb2.GetServiceRequest(), patience_s=0)


def test_who_holds_no_members_certificate_is_not_believed_to_be_one(
    certified: plan.Layout,
) -> None:
    member = Member("n1")
    with (
        serving(certified, member, certificate="n1") as server,
        connected(certified, server) as connection,
        pytest.raises(NoAnswerError, match="is no member of the control plane"),
    ):
        connection.call(lambda stub: stub.GetService, control_pb2.GetServiceRequest(), patience_s=0)
    assert member.calls == 0


def held(layout: plan.Layout, file: str, now: datetime.datetime, *, by: plan.Layout) -> None:
    """Have a user's or a member's certificate made at another time, or by another's authority."""
    signer = open_authority(by.pem("ca"), by.authority_key("ca"))
    ensure_holder(layout.pem(file), signer, HOLDERS[file], now, force=True)


HOLDERS = {"user": Holder(Role.USER, "admin"), "estibad-1": Holder(Role.MEMBER, "estibad-1")}
NOW = datetime.datetime.now(datetime.UTC)
LONG_AGO, SOME_DAY = NOW - datetime.timedelta(days=100), NOW + datetime.timedelta(days=2)


@pytest.mark.parametrize(
    ("file", "made", "sentence"),
    [
        ("user", LONG_AGO, r"our certificate in .*user\.pem ended on .* UTC: on a control plane"),
        (
            "user",
            SOME_DAY,
            r"our certificate in .* is not valid before .*: is this machine's clock",
        ),
        (
            "user",
            None,
            r"our certificate in .* was signed by another authority than that in .*ca\.pem",
        ),
        (
            "estibad-1",
            LONG_AGO,
            r"certificate of the member at 127\.0\.0\.1:\d+ has ended: run `estiba cl",
        ),
        (
            "estibad-1",
            SOME_DAY,
            r"member at 127\.0\.0\.1:\d+ is not valid yet by this machine's clock",
        ),
        ("estibad-1", None, r"is of another cluster: .* not signed by the authority in .*ca\.pem"),
    ],
    ids=[
        "we ended",
        "we have not begun",
        "another signed ours",
        "it ended",
        "not begun",
        "another's",
    ],
)
def test_certificates_that_do_not_come_together_say_why(
    certified: plan.Layout,
    tmp_path: Path,
    file: str,
    made: datetime.datetime | None,
    sentence: str,
) -> None:
    (tmp_path / "other").mkdir()
    other = state.make(tmp_path / "other", 1)
    authority.issue_all(other, NOW)
    held(certified, file, made or NOW, by=certified if made else other)
    with (
        serving(certified, Member("a")) as server,
        connected(certified, server) as connection,
        pytest.raises(CliError, match=sentence),
    ):
        connection.call(lambda stub: stub.GetService, control_pb2.GetServiceRequest(), patience_s=0)


def test_a_list_whose_pages_grew_too_old_is_read_again_from_the_start(
    certified: plan.Layout,
) -> None:
    with (
        serving(certified, Member("a")) as server,
        connected(certified, server) as connection,
    ):
        found = listing.services(connection)
    assert [service.metadata.id for service in found] == ["s3", "s4"]


def test_the_server_named_last_wins_and_the_local_cluster_lends_its_certificates(
    certified: plan.Layout,
) -> None:
    opened = {port.name: 1 for port in plan.ports(certified)}
    described = plan.described(certified, opened)
    state.write(certified.folder / "cluster.json", state.to_json(described))
    environment = {"ESTIBA_DIR": str(certified.folder)}

    assert find((), None, environment).servers == ("127.0.0.1:1", "127.0.0.1:1")
    environment["ESTIBA_SERVER"] = "a:1,b:2"
    assert find((), None, environment).servers == ("a:1", "b:2")
    assert find(("c:3",), None, environment).servers == ("c:3",)
    assert find(("c:3",), None, environment).tls == files(certified, "user")


def test_a_machine_that_controls_a_cluster_means_it_unless_a_local_one_runs_or_is_named(
    certified: plan.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "DEFAULT_FOLDER", tmp_path / "dev")
    root = tmp_path / "root"
    here = Places(root).cluster_json
    here.parent.mkdir(parents=True)
    tls = files(certified, "user")
    here.write_text(texts.cluster_json(name="default", servers=["a:1"], tls=tls))

    assert find((), None, {"ESTIBA_ROOT": str(root)}) == Target(("a:1",), tls)
    with pytest.raises(CliError, match=f"none runs in {tmp_path}/named"):
        find((), None, {"ESTIBA_ROOT": str(root), "ESTIBA_DIR": str(tmp_path / "named")})
    (tmp_path / "dev").mkdir()
    local_one = texts.cluster_json(name="dev", servers=["b:2"], tls=tls)
    (tmp_path / "dev/cluster.json").write_text(local_one)
    assert find((), None, {"ESTIBA_ROOT": str(root)}).servers == ("b:2",)


def test_without_a_cluster_or_a_certificate_the_way_to_one_is_told(tmp_path: Path) -> None:
    nowhere = {"ESTIBA_DIR": str(tmp_path)}
    with pytest.raises(CliError, match="estiba dev up"):
        find((), None, nowhere)
    with pytest.raises(CliError, match="--tls-dir"):
        find(("a:1",), None, nowhere)
    with pytest.raises(CliError, match="set all"):
        find(("a:1",), None, nowhere | {"ESTIBA_TLS_CA": "x"})
    with pytest.raises(CliError, match=r"ca\.pem"):
        find(("a:1",), tmp_path, nowhere)
