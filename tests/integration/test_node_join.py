"""`estiba node join` on machines of the test's own: with a real cluster, and with who is none."""

import base64
import datetime
import json
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.authority import issuing
from controlplane.authority.files import ensure_holder, open_authority, open_or_make_authority
from controlplane.authority.issuing import Holder
from controlplane.authority.requests import read_request
from controlplane.cli.errors import CliError
from controlplane.cli.setup import joinclient, node
from controlplane.cli.setup.machine import Machine
from controlplane.cli.setup.places import Places
from estiba.kit import jointoken, pem
from estiba.kit.jointoken import JoinToken
from estiba.kit.tls import MEMBER_SERVER_NAME, Identity, Role, identity_of
from tests.support.impostor import Impostor, listening
from tests.support.site import ADDRESS, Host, Site, site

NOW = datetime.datetime.now(datetime.UTC)
HERE = ("--advertise-addr", ADDRESS)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(here: Site) -> Host:
    return here.control_plane()


@pytest.fixture
def machine(here: Site, request: pytest.FixtureRequest) -> Host:
    return here.host(re.sub(r"\W+", "-", request.node.name)[-40:])


def joined(machine: Host, cluster: Host, *words: str, token: str = "") -> str:
    """Join, and return the id of the node."""
    machine.estiba("node", "join", *HERE, "--token", token or cluster.token(), *words, ADDRESS)
    return identity_of(machine.places.node.cert.read_bytes()).name


def nodes(cluster: Host) -> dict[str, str]:
    """Return the cluster's nodes: id to host name."""
    found = json.loads(cluster.estiba("node", "ls", "-o", "json").out)
    return {each["metadata"]["id"]: each["metadata"]["name"] for each in found}


# ---------------------------------------------------------------------------------- as it should be


def test_a_machine_joins_and_has_what_its_programs_need(machine: Host, cluster: Host) -> None:
    said = machine.estiba(
        *("node", "join", *HERE, "--hostname", "quay-1", "--token", cluster.token(), ADDRESS)
    )

    places = machine.places
    holder = identity_of(places.node.cert.read_bytes())
    assert (holder, holder.hostname) == (Identity(Role.NODE, holder.name), "quay-1")
    assert f"this machine is node {holder.name} of cluster default now" in said.err
    assert [line.split()[0].rpartition("/")[2] for line in said.out.splitlines()] == [
        "estiba-log-pump",
        "estiba-launcher",
        "estiba-agent",
    ]
    assert nodes(cluster)[holder.name] == "quay-1"
    assert places.node.ca.read_bytes() == (cluster.places.pki / "ca.pem").read_bytes()
    assert {name: file.mode for name, file in machine.files().items()} == {
        "etc/estiba/agent.toml": 0o644,
        "etc/estiba/node-ca.pem": 0o644,
        "var/lib/estiba/agent-pki/node.pem": 0o600,
    }
    assert places.agent_pki.stat().st_mode & 0o777 == 0o700
    text = places.agent_toml.read_text()
    assert f'members = ["{ADDRESS}:7443"]' in text
    assert f'metrics_advertise = "{ADDRESS}:7490"' in text


def test_a_second_time_changes_nothing(machine: Host, cluster: Host) -> None:
    token = cluster.token("--uses", "1")
    joined(machine, cluster, token=token)
    before, known = machine.files(), nodes(cluster)
    again = machine.estiba("node", "join", *HERE, "--token", token, ADDRESS)
    assert "this machine is a node of this cluster already" in again.err
    assert machine.files() == before
    assert nodes(cluster) == known


def test_the_token_may_come_in_the_environment_where_nobody_sees_it(
    machine: Host, cluster: Host
) -> None:
    environment = {"ESTIBA_JOIN_TOKEN": cluster.token()}
    assert machine.run("node", "join", *HERE, ADDRESS, environment=environment).code == 0
    assert machine.run("node", "join", *HERE, ADDRESS).code == 2


def test_a_machine_whose_certificate_has_ended_joins_again_as_the_same_node(
    machine: Host, cluster: Host
) -> None:
    name = joined(machine, cluster)
    # As it is a hundred days later: another certificate of the same key.
    pki = cluster.places.pki
    authority = open_authority(pki / "ca.pem", pki / "ca-key.pem")
    file = machine.places.node.cert
    key = pem.load_key(file.read_bytes())
    holder = Holder(Role.NODE, name, identity_of(file.read_bytes()).hostname)
    then = NOW - datetime.timedelta(days=100)
    ended = issuing.issue(authority, holder, key.public_key(), then) + pem.key_text(key)
    pem.replace_file(file, ended)
    machine.places.agent_toml.write_text(machine.places.agent_toml.read_text() + "# mine\n")

    assert joined(machine, cluster) == name

    assert pem.life_of(file.read_bytes()).remaining_s(NOW.timestamp()) > 80 * 86400
    assert machine.places.agent_toml.read_text().endswith("# mine\n")


def test_what_was_interrupted_before_all_files_were_there_is_finished(
    machine: Host, cluster: Host
) -> None:
    name = joined(machine, cluster)
    machine.places.agent_toml.unlink()
    machine.places.node.ca.unlink()
    assert joined(machine, cluster) == name
    assert machine.places.agent_toml.exists()


def test_joining_needs_no_grpc(machine: Host, cluster: Host, here: Site) -> None:
    script = (
        "import sys; from controlplane.cli.main import run;"
        "code = run(sys.argv[1:]); sys.exit(code or int('grpc' in sys.modules))"
    )
    words = ["node", "join", *HERE, "--token", cluster.token(), ADDRESS]
    root = f"ESTIBA_ROOT={machine.root}"
    here.space.run("env", root, sys.executable, "-c", script, *words)
    assert machine.places.node.cert.exists()


# --------------------------------------------------------------------------------- as it is refused


def refused(machine: Host, token: str, address: str = ADDRESS) -> str:
    """Try to join, see that nothing is left of it, and return the sentence."""
    said = machine.run("node", "join", *HERE, "--token", token, address)
    assert said.code == 1
    assert said.out == ""
    assert machine.files() == {}
    assert not machine.places.agent_pki.exists()
    assert said.err.startswith("estiba: ")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("estiba: ").strip()


def test_a_token_of_another_cluster_is_sent_to_nobody(machine: Host, cluster: Host) -> None:
    token = jointoken.parse(cluster.token())
    other = str(JoinToken("a" * 52, token.id, token.secret))
    before = nodes(cluster)
    assert refused(machine, other) == (
        "the machine at 127.0.0.1:7444 is not the cluster that the token is of: somebody may be in "
        "between, or the token is another cluster's; nothing was said to it"
    )
    assert nodes(cluster) == before


def test_what_the_cluster_says_against_a_token_is_said(machine: Host, cluster: Host) -> None:
    token = jointoken.parse(cluster.token())
    wrong = JoinToken(token.digest, token.id, "a" * 26)
    assert refused(machine, str(wrong)).startswith("this cluster has no such token: make another")
    gone = cluster.token()
    cluster.estiba("cluster", "token", "rm", jointoken.parse(gone).id)
    assert refused(machine, gone).startswith("this cluster has no such token: make another")


def test_a_used_up_token_admits_nobody(machine: Host, cluster: Host, here: Site) -> None:
    token = cluster.token("--uses", "1")
    joined(here.host("first-of-one"), cluster, token=token)
    assert refused(machine, token).startswith("the token has admitted the 1 node that it was for")


def test_where_nobody_listens_the_control_plane_is_asked_after(
    machine: Host, cluster: Host
) -> None:
    assert refused(machine, cluster.token(), "127.0.0.1:9") == (
        "nothing listens at 127.0.0.1:9: is that a control plane, and does estibad run there?"
    )
    assert refused(machine, cluster.token(), "192.0.2.77").startswith(
        "no way leads to 192.0.2.77:7444: network is unreachable; is there a network, or"
    )
    assert refused(machine, cluster.token(), "no.such.machine.invalid").startswith(
        "no machine is called no.such.machine.invalid: "
    )


@pytest.mark.parametrize("port", [7443, 7480, 2379])
def test_other_ports_of_the_cluster_are_no_place_to_join(
    machine: Host, cluster: Host, port: int
) -> None:
    said = refused(machine, cluster.token(), f"{ADDRESS}:{port}")
    assert f"{ADDRESS}:{port}" in said


@pytest.mark.parametrize("address", ["", ":7444", "127.0.0.1:x", "[::1", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_shown(machine: Host, cluster: Host, address: str) -> None:
    assert refused(machine, cluster.token(), address) == (
        f"{address!r} is not HOST or HOST:PORT of a control plane"
    )


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_a_host_name_that_is_none_is_shown(machine: Host, cluster: Host, host: str) -> None:
    said = refused(machine, cluster.token(), host)
    assert said == f"no machine is called {host!r}: that is no host name"


def test_while_one_command_changes_a_machine_no_other_does_however_often_it_is_typed(
    tmp_path: Path,
) -> None:
    machine = Machine(Places(tmp_path), None)
    with machine.alone():
        for _ in range(3):
            with pytest.raises(CliError, match="another command of Estiba"), machine.alone():
                pass
    assert not machine.places.state.exists()
    with machine.alone():
        pass


def test_a_token_that_is_none_is_not_repeated(machine: Host, cluster: Host) -> None:
    token = cluster.token()
    assert token.rpartition("-")[2] not in refused(machine, token[:-1])


def test_a_taken_port_is_found_before_the_cluster_is_asked(
    machine: Host, cluster: Host, here: Site, tmp_path: Path
) -> None:
    before = nodes(cluster)
    with here.space.serving(tmp_path / "www", "taken", port=7490):
        said = refused(machine, cluster.token())
    assert said.startswith("port 7490 is taken, and estiba-agent needs it: ")
    assert nodes(cluster) == before


def test_a_node_of_another_cluster_is_not_taken_over(machine: Host, cluster: Host) -> None:
    joined(machine, cluster)
    before = machine.files()
    other = str(JoinToken("a" * 52, "b" * 8, "c" * 26))
    said = machine.run("node", "join", *HERE, "--token", other, ADDRESS)
    assert said.code == 1
    assert said.err.startswith("estiba: this machine is a node of another cluster already: ")
    assert machine.files() == before


def test_a_removed_node_is_told_to_leave_first(machine: Host, cluster: Host) -> None:
    name = joined(machine, cluster)
    cluster.estiba("node", "rm", "--force", name)
    machine.places.agent_toml.unlink()
    said = machine.run("node", "join", *HERE, "--token", cluster.token(), ADDRESS)
    assert said.code == 1
    assert "`estiba node leave` on the machine, then join again with a new key" in said.err
    machine.estiba("node", "leave")
    assert machine.files() == {}
    assert joined(machine, cluster) != name


# --------------------------------------------------------------------- without a cluster: impostors


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """A folder with an authority, and a member's certificate of it."""
    folder = tmp_path / "pki"
    folder.mkdir()
    authority = open_or_make_authority(folder / "ca.pem", folder / "ca-key.pem", "test", NOW)
    ensure_holder(folder / "member.pem", authority, Holder(Role.MEMBER, "cp"), NOW)
    ensure_holder(folder / "node.pem", authority, Holder(Role.NODE, "x", "x"), NOW)
    return folder


@pytest.fixture
def impostor(pki: Path) -> Impostor:
    return Impostor((pki / "ca.pem").read_bytes())


def token_of(pki: Path) -> JoinToken:
    der = ssl.PEM_cert_to_DER_cert((pki / "ca.pem").read_text())
    return JoinToken(jointoken.digest_of(der), "b" * 8, "s" * 26)


def join(impostor: Impostor, pki: Path, root: Path) -> str:
    """Try to join, and return the sentence."""
    root.mkdir(exist_ok=True)
    address = joinclient.parse_address(impostor.address)
    wanted = node.Wanted(token_of(pki), address, ADDRESS, "n1")
    with pytest.raises(CliError) as no:
        node.join(Machine(Places(root), None), wanted)
    return str(no.value)


def test_who_shows_the_right_authority_and_is_not_of_it_is_not_told_the_secret(
    impostor: Impostor, pki: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    foreign = open_or_make_authority(other / "ca.pem", other / "ca-key.pem", "test", NOW)
    ensure_holder(other / "member.pem", foreign, Holder(Role.MEMBER, "cp"), NOW)
    with listening(impostor, other / "member.pem"):
        said = join(impostor, pki, tmp_path / "root")
    assert said.startswith(f"the machine at {impostor.address} does not prove to be the cluster")
    assert said.endswith("the token was not sent")
    assert impostor.heard == ["GET /v1/authority HTTP/1.1"]
    assert list((tmp_path / "root").rglob("*.pem")) == []


def test_who_adds_an_authority_of_its_own_to_the_right_one_is_not_told_the_secret(
    impostor: Impostor, pki: Path, tmp_path: Path
) -> None:
    # Base64 that ends in padding: who reads it leniently reads nothing after that.
    while len(ssl.PEM_cert_to_DER_cert((pki / "ca.pem").read_text())) % 3 == 0:
        (pki / "ca.pem").unlink()
        open_or_make_authority(pki / "ca.pem", pki / "ca-key.pem", "test", NOW)
    other = tmp_path / "other"
    other.mkdir()
    foreign = open_or_make_authority(other / "ca.pem", other / "ca-key.pem", "test", NOW)
    ensure_holder(other / "member.pem", foreign, Holder(Role.MEMBER, "cp"), NOW)
    impostor.authority = (pki / "ca.pem").read_bytes() + foreign.pem
    with listening(impostor, other / "member.pem"):
        said = join(impostor, pki, tmp_path / "root")
    assert said.endswith("the token was not sent")
    assert impostor.heard == ["GET /v1/authority HTTP/1.1"]


def test_a_node_of_the_cluster_cannot_pass_for_its_control_plane(
    impostor: Impostor, pki: Path, tmp_path: Path
) -> None:
    with listening(impostor, pki / "node.pem"):
        said = join(impostor, pki, tmp_path / "root")
    assert "does not prove to be the cluster that the token is of" in said
    assert impostor.heard == ["GET /v1/authority HTTP/1.1"]


def test_a_control_plane_whose_certificate_has_ended_is_named(
    impostor: Impostor, pki: Path, tmp_path: Path
) -> None:
    authority = open_authority(pki / "ca.pem", pki / "ca-key.pem")
    then = NOW - datetime.timedelta(days=100)
    ensure_holder(pki / "member.pem", authority, Holder(Role.MEMBER, "cp"), then, force=True)
    with listening(impostor, pki / "member.pem"):
        said = join(impostor, pki, tmp_path / "root")
    assert said == (
        f"the certificate of the control plane at {impostor.address} has ended: "
        "run `estiba cluster renew` on it"
    )


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [
        (86400.0 * 2.1, "2 days behind the cluster's"),
        (-86400.0, "24 hours ahead of the cluster's"),
        (400.0, "7 minutes behind the cluster's"),
    ],
)
def test_a_clock_that_is_off_is_found_out_before_anything_is_said(
    impostor: Impostor, pki: Path, tmp_path: Path, ahead_s: float, words: str
) -> None:
    impostor.ahead_s = ahead_s
    with listening(impostor, pki / "member.pem"):
        said = join(impostor, pki, tmp_path / "root")
    assert said == (
        f"this machine's clock is {words}, and certificates begin and end by the clock: set it "
        "right"
    )
    assert impostor.heard == ["GET /v1/authority HTTP/1.1"]


def test_who_answers_anything_else_is_no_control_plane(
    impostor: Impostor, pki: Path, tmp_path: Path
) -> None:
    impostor.authority = b"<html>It works!</html>"
    with listening(impostor, pki / "member.pem"):
        said = join(impostor, pki, tmp_path / "root")
    assert said == f"what answers at {impostor.address} is no control plane of Estiba"


def test_a_lost_answer_leaves_the_key_and_the_next_attempt_is_the_same_node(
    impostor: Impostor, pki: Path, tmp_path: Path
) -> None:
    requests = []
    with listening(impostor, pki / "member.pem"):
        for _ in range(2):
            said = join(impostor, pki, tmp_path / "root")
            assert "this machine may have been admitted: type it again" in said
            requests.append(json.loads(impostor.heard[-1]))
    places = Places(tmp_path / "root")
    assert places.joining_key.stat().st_mode & 0o777 == 0o600
    assert not places.etc.exists()
    first, second = (read_request(base64.b64decode(each["request_pem"])) for each in requests)
    assert first.key_id == second.key_id


def test_an_admission_that_cannot_be_written_down_leaves_no_configuration(
    cluster: Host, machine: Host
) -> None:
    # Where there is a folder not even root makes a file.
    machine.places.agent_toml.mkdir(parents=True)
    token = cluster.token("--uses", "1")
    said = machine.run("node", "join", *HERE, "--token", token, ADDRESS)
    assert said.code == 1
    assert "agent.toml" in said.err
    assert [*machine.files()] == ["var/lib/estiba/agent-pki/joining.pem"]
    machine.places.agent_toml.rmdir()
    # The same key is the same node: the token's only use is not used up.
    joined(machine, cluster, token=token)


def test_a_cluster_that_cannot_answer_now_is_asked_again(
    impostor: Impostor, pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joinclient, "PAUSE_S", 0.01)
    replies = iter([(503, b'{"error": "its store does not answer"}')] * 3)
    impostor.answer = lambda _: next(replies, (403, b'{"error": "no such token\\u001b[2J"}'))
    with listening(impostor, pki / "member.pem"):
        assert join(impostor, pki, tmp_path / "root") == "no such token?[2J"
    assert impostor.heard.count("POST /v1/join HTTP/1.1") == 4
    assert list((tmp_path / "root").rglob("*.pem")) == []


def test_a_stricter_openssl_takes_the_certificates_too(impostor: Impostor, pki: Path) -> None:
    # Python verifies by the letter of RFC 5280 from 3.13 on, which is Debian 13's.
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with listening(impostor, pki / "member.pem"):
        host, port = impostor.address.split(":")
        with (
            socket.create_connection((host, int(port))) as link,
            context.wrap_socket(link, server_hostname=MEMBER_SERVER_NAME) as secured,
        ):
            assert secured.version()
