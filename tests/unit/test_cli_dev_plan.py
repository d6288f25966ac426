"""What a local cluster consists of, and the files its programs read."""

import tomllib
from pathlib import Path

import pytest

from controlplane.cli.dev import lifecycle, plan


def layout(nodes: int = 3, folder: str = "/var/lib/estiba-dev") -> plan.Layout:
    seats = tuple(plan.Seat(f"id{n}", f"n{n}") for n in range(1, nodes + 1))
    return plan.Layout(Path(folder), Path("/venv/bin"), seats)


def opened(of: plan.Layout) -> dict[str, int]:
    return {port.name: 20000 + number for number, port in enumerate(plan.ports(of))}


@pytest.mark.parametrize("nodes", [1, 3, plan.MOST_NODES])
def test_every_namespace_has_an_address_of_its_own_on_the_fabric(nodes: int) -> None:
    addresses = plan.namespaces(layout(nodes))
    assert len(set(addresses.values()) | {plan.GATEWAY}) == len(addresses) + 1
    assert all(address in plan.FABRIC for address in addresses.values())
    # p-NAME is the name of the bridge's port, and the kernel allows 15 characters.
    assert all(len(f"p-{name}") <= 15 for name in addresses)


@pytest.mark.parametrize("nodes", [1, 3, plan.MOST_NODES])
def test_no_port_of_the_host_is_wanted_twice(nodes: int) -> None:
    wanted = [port.wanted for port in plan.ports(layout(nodes))]
    assert len(set(wanted)) == len(wanted)


def test_every_program_runs_in_a_namespace_that_there_is() -> None:
    programs = plan.programs(layout())
    assert {program.namespace for program in programs} <= set(plan.namespaces(layout()))
    assert len({program.name for program in programs}) == len(programs) == 2 + 2 + 3 * 3


def test_agents_stop_before_their_launchers_and_etcd_last() -> None:
    waves = {program.name: program.wave for program in plan.programs(layout())}
    assert waves["n1-agent"] < waves["n1-launcher"] < waves["estibad-1"] < waves["etcd"]
    assert max(waves.values()) == waves["etcd"]


def test_two_folders_share_no_cgroup() -> None:
    assert layout(folder="/a").cgroup != layout(folder="/b").cgroup


def test_the_agents_file_names_node_members_launcher_and_registry() -> None:
    of = layout()
    text = plan.files(of, opened(of))[Path("/var/lib/estiba-dev/nodes/n2/agent.toml")]
    read = tomllib.loads(text)
    assert read["node_id"] == "id2"
    assert read["members"] == ["10.77.0.11:7443", "10.77.0.12:7443"]
    assert read["address"] == "10.77.0.102"
    assert read["cgroup_parent"] == f"{of.cgroup}/n2"
    assert read["registries"]["registry.estiba:5000"]["address"] == "10.77.0.3:5000"
    launcher = next(p for p in plan.programs(of) if p.name == "n2-launcher")
    assert read["launcher_socket"] in launcher.argv
    assert read["metrics_advertise"] == f"127.0.0.1:{opened(of)['n2/metrics']}"


def test_only_members_hold_what_opens_the_store() -> None:
    of = layout()
    for path, text in plan.files(of, opened(of)).items():
        assert ("etcd-client" in text) == path.name.startswith("estibad-")


def test_a_folder_with_quotes_and_spaces_stays_one_text() -> None:
    of = layout(folder='/x/"a b"')
    text = plan.files(of, opened(of))[of.folder / "estibad-1.toml"]
    assert tomllib.loads(text)["tls"]["ca"] == '/x/"a b"/pki/ca.pem'


def test_what_is_described_is_what_was_opened() -> None:
    of = layout()
    described = plan.described(of, opened(of))
    ports = opened(of)
    assert described["servers"] == [
        f"127.0.0.1:{ports['estibad-1/api']}",
        f"127.0.0.1:{ports['estibad-2/api']}",
    ]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3.4.21", "too old"),
        ("3.5.0", "corrupt"),
        ("3.5.2", "corrupt"),
        ("2.0.0", "too old"),
    ],
)
def test_an_etcd_that_will_not_do_is_refused_with_the_reason(version: str, words: str) -> None:
    assert words in lifecycle.etcd_fault(f"etcd Version: {version}\nGit SHA: x\n")


@pytest.mark.parametrize("version", ["3.4.22", "3.4.30", "3.5.3", "3.6.1"])
def test_an_etcd_that_will_do_is_accepted(version: str) -> None:
    assert lifecycle.etcd_fault(f"etcd Version: {version}\nGit SHA: x\n") == ""


def test_nodes_that_do_not_come_are_named_with_where_to_look() -> None:
    assert lifecycle.absent([]) == ""
    assert lifecycle.absent(["n3"]) == "; n3 is not ready, see `estiba dev logs n3-agent`"
    assert lifecycle.absent(["n1", "n2"]).startswith("; n1, n2 are not ready, see ")
