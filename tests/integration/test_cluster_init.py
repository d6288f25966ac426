"""`estiba cluster init` and `renew` on machines of the test's own; etcd and estibad are real."""

import datetime
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from controlplane import config as configuration
from controlplane.authority.files import open_authority
from controlplane.cli.setup import control_plane
from controlplane.cli.setup.machine import Machine
from controlplane.cli.setup.places import Places
from estiba.kit import pem
from estiba.kit.tls import identity_of
from tests.support.site import ADDRESS, BIN, Host, Site, answers, digest_in, site
from tests.support.waiting import eventually

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        yield made


def test_a_machine_is_made_a_control_plane_and_started_as_it_says(here: Site) -> None:
    host = here.host("cp")
    made = host.estiba("cluster", "init", "--advertise-addr", ADDRESS, "--name", "harbour")
    assert "start by hand" in made.err
    host.start(made.out)
    answers(host)

    shown = host.estiba("info").out
    assert shown.startswith("Cluster:  harbour")
    assert f"{ADDRESS}:7443" in shown
    token = host.estiba("cluster", "token", "create").out
    assert re.fullmatch(rf"estiba node join --token estiba-1-\S+ {ADDRESS}:7444\n", token)
    authority = open_authority(host.places.pki / "ca.pem", host.places.pki / "ca-key.pem")
    assert digest_in(token.split()[4]) == authority.digest


def test_once_the_control_plane_answers_the_command_that_joins_is_printed(here: Site) -> None:
    host = here.control_plane()
    script = (
        "import sys; from pathlib import Path; from controlplane.cli.cluster import init;"
        "from controlplane.cli.setup.places import Places;"
        "init.tell_how_to_join(Places(Path(sys.argv[1])), sys.argv[2])"
    )
    command = here.space.run(sys.executable, "-c", script, str(host.root), ADDRESS)
    assert command.startswith("estiba node join --token estiba-1-")
    words = [*shlex.split(command)[1:], "--advertise-addr", ADDRESS]
    here.host("n1").estiba(*words)


def test_keys_are_for_their_owners_alone_and_authorities_for_everybody(here: Site) -> None:
    host = here.host("cp")
    host.estiba("cluster", "init", "--advertise-addr", ADDRESS)
    found = host.files()
    assert {name for name, file in found.items() if b"PRIVATE KEY" in file.content} == {
        "etc/estiba/admin.pem",
        "etc/estiba/prometheus/metrics.pem",
        "var/lib/estiba/etcd-pki/etcd.pem",
        "var/lib/estiba/pki/ca-key.pem",
        "var/lib/estiba/pki/etcd-ca-key.pem",
        "var/lib/estiba/pki/etcd-client.pem",
        "var/lib/estiba/pki/member.pem",
    }
    for name, file in found.items():
        assert file.mode == (0o600 if b"PRIVATE KEY" in file.content else 0o644), name
    assert host.places.etcd_data.stat().st_mode & 0o777 == 0o700


def test_a_second_time_changes_nothing_and_says_how_others_join(here: Site) -> None:
    host = here.control_plane()
    before = host.files()
    again = host.estiba("cluster", "init", "--advertise-addr", "192.0.2.77", "--name", "other")
    assert again.out == ""
    assert again.err == (
        "estiba: this machine is a control plane already; "
        "`estiba cluster token create` admits others\n"
    )
    assert host.files() == before


def test_an_address_must_be_said_if_there_are_several(here: Site) -> None:
    host = here.host("cp")
    here.space.run("ip", "link", "add", "two", "type", "veth", "peer", "name", "one")
    for link, address in (("one", "192.0.2.1/24"), ("two", "198.51.100.1/24")):
        here.space.run("ip", "address", "add", address, "dev", link)
        here.space.run("ip", "link", "set", link, "up")

    said = host.run("cluster", "init")

    assert said.code == 1
    assert said.err == (
        "estiba: this machine has several addresses: say which of them other machines reach, by "
        "--advertise-addr: 192.0.2.1 on one, 198.51.100.1 on two\n"
    )
    assert host.files() == {}
    host.estiba("cluster", "init", "--advertise-addr", "two")
    assert 'advertise = "198.51.100.1:7443"' in host.places.estibad_toml.read_text()


@pytest.mark.parametrize("port", [7443, 7444, 7480, 2379, 2380])
def test_a_port_that_is_taken_is_named_and_nothing_is_made(here: Site, port: int) -> None:
    host = here.host("cp")
    with here.space.serving(host.root.parent / "www", "taken", port=port):
        said = host.run("cluster", "init", "--advertise-addr", ADDRESS)
    assert said.code == 1
    needed_by = "etcd" if port < 7000 else "estibad"
    assert said.err == (
        f"estiba: port {port} is taken, and {needed_by} needs it: "
        f"`ss -ltnp 'sport = :{port}'` shows by whom\n"
    )
    assert list(host.root.rglob("*")) == [host.root / "var", host.root / "var/lib"]


@pytest.mark.parametrize("name", ["", "Harbour", "-x", "x" * 41, "a b"])
def test_a_cluster_has_a_name_that_fits_everywhere(here: Site, name: str) -> None:
    host = here.host("cp")
    said = host.run("cluster", "init", "--advertise-addr", ADDRESS, "--name", name)
    assert said.code == 2
    assert f"{name!r} is no name: use 1 to 40 small letters, digits and hyphens" in said.err
    assert host.files() == {}


def test_without_root_nothing_is_made() -> None:
    # It means the real /, so it must be refused before anything else.
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for words in (
        ["cluster", "init"],
        ["cluster", "renew"],
        ["node", "join", "--token", "x", "192.0.2.1"],
        ["node", "leave"],
    ):
        said = subprocess.run(
            [*nobody, BIN / "estiba", *words],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 1
        assert said.stderr == (
            "estiba: this changes files of the system, and needs root: type it with sudo\n"
        )


# ------------------------------------------------------------------------------- cut off in between


def initialise(root: Path) -> None:
    machine = Machine(Places(root), None)
    control_plane.initialise(machine, address=ADDRESS, name="default", member_id="cp", now=NOW)


def interrupted(root: Path, after: int) -> bool:
    """Initialise in a process that dies as it begins to write a file; say if it came so far."""
    child = os.fork()
    if child == 0:
        left = iter(range(after))
        write = pem.replace_file

        def replace_file(*arguments: Any, **settings: Any) -> None:
            if next(left, None) is None:
                os._exit(9)
            write(*arguments, **settings)

        pem.replace_file = replace_file
        initialise(root)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


def test_what_was_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    for after in itertools.count():
        root = tmp_path / str(after)
        root.mkdir()
        if not interrupted(root, after):
            break
        machine = Machine(Places(root), None)
        assert not control_plane.is_initialised(machine.places)
        kept = {path: path.read_bytes() for path in root.rglob("*.pem")}

        initialise(root)

        assert control_plane.is_initialised(machine.places)
        for path, content in kept.items():
            # A key that has no certificate yet has signed nothing.
            is_half = (
                path.name.endswith("-key.pem")
                and path.with_name(path.name.replace("-key", "")) not in kept
            )
            assert is_half or path.read_bytes() == content
        assert control_plane.renew(machine, NOW, force=False) == []
    assert after >= 12


def test_another_address_after_one_that_was_cut_off_is_the_one_that_counts(tmp_path: Path) -> None:
    places = Places(tmp_path)
    assert interrupted(tmp_path, 12)
    assert places.estibad_toml.exists()
    control_plane.initialise(
        Machine(places, None), address="192.0.2.77", name="other", member_id="cp-2", now=NOW
    )
    config = configuration.load(places.estibad_toml)
    assert (config.advertise, config.cluster_name) == ("192.0.2.77:7443", "other")
    assert config.member_id == identity_of(places.member.cert.read_bytes()).name == "cp-2"


def test_root_writes_into_no_folder_that_is_anothers(tmp_path: Path) -> None:
    initialise(tmp_path)
    machine = Machine(Places(tmp_path), None)
    # As it was made before: whoever had it could lay links where root writes.
    machine.places.etcd_pki.chmod(0o700)
    os.chown(machine.places.etcd_pki, 65534, 65534)

    control_plane.renew(machine, NOW, force=False)

    for each in (
        *control_plane.held_of_store(machine.places),
        *control_plane.held_of_cluster(machine.places, ""),
    ):
        folder = each.path.parent.stat()
        assert (folder.st_uid, folder.st_mode & 0o777) == (os.geteuid(), 0o755)


def test_a_link_in_place_of_a_certificate_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    link = tmp_path / "etcd.pem"
    link.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        control_plane.give(link, (65534, 65534))
    assert secret.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("name", ["pki/etcd-client.pem", "etcd-pki/etcd.pem"])
def test_a_file_that_cannot_be_made_leaves_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "etc").mkdir()
    # Where there is a folder not even root makes a file.
    (tmp_path / "var/lib/estiba" / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(OSError, match=re.escape(name)):
        initialise(tmp_path)

    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------------------ renewal


def test_certificates_past_half_of_their_life_are_renewed_and_the_programs_show_them(
    here: Site,
) -> None:
    host = here.control_plane()
    assert host.estiba("cluster", "renew").err.startswith("estiba: no certificate is past half")
    before = {name: serial(here, port) for name, port in SERVERS.items()}
    age(host)

    renewed = host.estiba("cluster", "renew").out.split()

    assert sorted(renewed) == ["admin", "etcd", "etcd-client", "member", "metrics"]
    for name, port in SERVERS.items():
        what = f"{name} shows its new certificate"
        eventually(partial(is_other, here, port, before[name]), within_s=30, what=what)
    assert host.estiba("info").out.startswith("Cluster:")
    assert host.estiba("cluster", "renew").out == ""
    forced = host.estiba("cluster", "renew", "--force").out.split()
    assert sorted(forced) == sorted(renewed)


SERVERS = {"estibad's API": 7443, "its web port": 7480, "its port for joining": 7444, "etcd": 2379}


def age(host: Host) -> None:
    """Have all certificates of a control plane's machine made sixty days ago."""
    machine = Machine(host.places, None)
    then = NOW - datetime.timedelta(days=60)
    control_plane.renew(machine, then, force=True)


def is_other(here: Site, port: int, than: int) -> bool:
    return serial(here, port) != than


def serial(here: Site, port: int) -> int:
    """Return the number of the certificate that a server shows in a new handshake."""
    ask = f"import ssl; print(ssl.get_server_certificate(('{ADDRESS}', {port})))"
    shown = here.space.run(sys.executable, "-c", ask)
    return x509.load_pem_x509_certificate(shown.encode()).serial_number


def test_where_nothing_is_controlled_nothing_is_renewed(here: Site) -> None:
    said = here.host("cp").run("cluster", "renew")
    assert said.code == 1
    assert said.err == (
        "estiba: this machine controls no cluster: `estiba cluster init` makes one\n"
    )


def test_an_authority_that_is_lost_is_named_and_not_made_anew(here: Site) -> None:
    host = here.host("cp")
    host.estiba("cluster", "init", "--advertise-addr", ADDRESS)
    (host.places.pki / "ca-key.pem").unlink()
    before = host.files()
    for words in (("cluster", "renew", "--force"), ("cluster", "init")):
        said = host.run(*words)
        assert host.files() == before
    assert said.code == 0
    said = host.run("cluster", "renew", "--force")
    assert said.code == 1
    assert f"{host.places.pki}/ca-key.pem: No such file or directory" in said.err
