"""A machine's life in a cluster, with all programs real: it joins, renews, starts anew, leaves."""

import datetime
import json
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from controlplane.authority.files import ensure_holder, open_authority
from controlplane.authority.issuing import Holder
from controlplane.cli.setup.places import CGROUP_PARENT
from estiba.kit import pem
from estiba.kit.tls import Role, identity_of
from tests.support.containers import cgroup_folders
from tests.support.site import ADDRESS, Host, Site, site
from tests.support.waiting import eventually

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        yield made


@pytest.fixture
def cluster(here: Site) -> Host:
    return here.control_plane()


@pytest.fixture
def parent() -> Iterator[str]:
    """A cgroup for containers that no other cluster has."""
    parent = f"/estiba-test-{secrets.token_hex(4)}"
    yield parent
    for folder in cgroup_folders(parent):
        with suppress(OSError):
            folder.rmdir()


@pytest.fixture
def machine(here: Site, cluster: Host, parent: str) -> Host:
    """A machine that has joined, with what it said is to be started."""
    host = here.host("n1")
    words = ("--advertise-addr", ADDRESS, "--hostname", "n1", "--token", cluster.token())
    host.commands = host.estiba("node", "join", *words, ADDRESS).out.replace(CGROUP_PARENT, parent)
    toml = host.places.agent_toml
    toml.write_text(toml.read_text().replace(CGROUP_PARENT, parent))
    return host


def is_ready(cluster: Host) -> bool:
    said = cluster.run("node", "ls", "-o", "json")
    found = json.loads(said.out) if said.code == 0 else []
    return [each["status"].get("state") for each in found] == ["NODE_STATE_READY"]


def session_fault(here: Site, machine: Host) -> str:
    """Ask what `estiba node join` waits for, from where the machine's ports are."""
    ask = (
        "import sys; from pathlib import Path; from controlplane.cli.setup import node, places;"
        "print(node.session_fault(places.Places(Path(sys.argv[1]))))"
    )
    return here.space.run(sys.executable, "-c", ask, str(machine.root)).strip()


def becomes_ready(cluster: Host) -> None:
    eventually(lambda: is_ready(cluster), within_s=60, what="the node is ready")


def test_a_node_that_joined_is_ready_and_leaves_nothing_when_it_leaves(
    machine: Host, cluster: Host, here: Site, parent: str
) -> None:
    machine.start(machine.commands)
    becomes_ready(cluster)
    assert session_fault(here, machine) == ""
    assert machine.places.agent_state.is_dir()
    assert machine.places.launcher_state.is_dir()
    said = machine.run("node", "leave")
    assert said.code == 1
    assert "another agent works in" in said.err
    assert machine.stop("estiba-agent") == 0
    assert session_fault(here, machine).startswith("its agent does not answer: ")

    assert "is no node any more" in machine.estiba("node", "leave").err

    machine.close()
    assert machine.files() == {}
    # What was stopped by hand after that has emptied this.
    machine.places.run.rmdir()
    assert [path for path in machine.root.rglob("*") if "estiba" in path.name] == []
    assert cgroup_folders(parent) == []
    assert machine.estiba("node", "leave").err == "estiba: this machine is no node\n"


def test_a_node_renews_its_certificate_by_itself_with_a_member_that_holds_the_authority(
    machine: Host, cluster: Host
) -> None:
    pki, file = cluster.places.pki, machine.places.node.cert
    holder = identity_of(file.read_bytes())
    authority = open_authority(pki / "ca.pem", pki / "ca-key.pem")
    then = NOW - datetime.timedelta(days=60)
    aged = Holder(Role.NODE, holder.name, holder.hostname)
    ensure_holder(file, authority, aged, then, force=True)

    machine.start(machine.commands)

    def days_left() -> float:
        return pem.life_of(file.read_bytes()).remaining_s(NOW.timestamp()) / 86400

    eventually(lambda: days_left() > 89, within_s=60, what="the certificate is renewed")
    becomes_ready(cluster)
    assert identity_of(file.read_bytes()) == holder
    assert "issued a new certificate, for 90.0 days" in machine.log("estiba-agent")


def test_after_all_was_killed_at_once_it_comes_back_in_any_order(
    machine: Host, cluster: Host
) -> None:
    machine.start(machine.commands)
    becomes_ready(cluster)
    here = {"etcd": cluster, "estibad": cluster}
    commands = cluster.commands
    for name in ("estiba-agent", "estiba-launcher", "estiba-log-pump", "estibad", "etcd"):
        here.get(name, machine).stop(name, signal.SIGKILL)
    # The boot has emptied /run.
    for path in machine.places.run.iterdir():
        path.unlink()
    machine.places.run.rmdir()

    pump, launcher, agent = machine.commands.splitlines()
    etcd, estibad = commands.splitlines()
    for host, line in (
        *((machine, agent), (machine, launcher), (cluster, estibad)),
        *((machine, pump), (cluster, etcd)),
    ):
        host.start(line)

    becomes_ready(cluster)
