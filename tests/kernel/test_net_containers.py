"""The network of one node, read back from the kernel and tried with real traffic."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.network import Agent, AgentRefusedError, Space, join, spaces
from tests.support.waiting import eventually

ATTACHMENT: dict[str, Any] = {
    "network_id": "net-1",
    "network_name": "default",
    "cidr": "10.10.0.0/16",
    "block": "10.10.1.0/24",
    "vni": 4097,
    "mtu": 1450,
}
OTHER = ATTACHMENT | {
    "network_id": "net-2",
    "network_name": "other",
    "cidr": "10.20.0.0/16",
    "block": "10.20.1.0/24",
    "vni": 4098,
}


@dataclass(frozen=True, slots=True)
class World:
    """A node, with a machine beyond it that knows no way to its containers."""

    beyond: Space
    node: Space
    agent: Agent
    state_dir: Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with spaces(2) as (beyond, node):
        join(beyond, "p-n1", "10.77.0.1/24", node, "10.77.0.101/24")
        node.run("ip", "route", "add", "default", "via", "10.77.0.1")
        state_dir = tmp_path / "state"
        state_dir.mkdir()
        with Agent(node, state_dir) as agent:
            yield World(beyond, node, agent, state_dir)


@pytest.fixture
def container() -> Iterator[Space]:
    with Space() as space:
        yield space


@pytest.fixture
def neighbour() -> Iterator[Space]:
    with Space() as space:
        yield space


def veths(node: Space) -> dict[str, str]:
    """Map the node's ends of containers' links to their aliases."""
    links = node.ip("link", "show")
    return {link["ifname"]: link.get("ifalias", "") for link in links if link["ifname"][:2] == "es"}


def own_addresses(space: Space) -> list[str]:
    return [
        f"{entry['local']}/{entry['prefixlen']}"
        for link in space.ip("addr", "show", "dev", "eth0")
        for entry in link["addr_info"]
    ]


def test_a_container_gets_one_address_a_gateway_and_nothing_else(
    world: World, container: Space
) -> None:
    assert world.agent.connect("web.1-r1", container.pid, ATTACHMENT) == "10.10.1.2"

    assert container.link_names() == {"lo", "eth0"}
    assert own_addresses(container) == ["10.10.1.2/32"]
    routes = {(r["dst"], r.get("gateway")) for r in container.ip("route", "show")}
    assert routes == {("default", "10.10.1.1"), ("10.10.1.1", None)}
    (inner,) = container.ip("link", "show", "dev", "eth0")
    assert (inner["mtu"], inner["address"]) == (1450, "02:00:0a:0a:01:02")


def test_the_node_gets_a_bridge_with_a_fixed_mac_and_isolated_ports(
    world: World, container: Space
) -> None:
    world.agent.connect("web.1-r1", container.pid, ATTACHMENT)

    (bridge,) = world.node.ip("addr", "show", "dev", "br4097")
    assert (bridge["address"], bridge["mtu"]) == ("02:00:0a:0a:01:01", 1450)
    # IPv4 alone: a link-local IPv6 address would be a way around the rules.
    assert [(a["local"], a["prefixlen"]) for a in bridge["addr_info"]] == [("10.10.1.1", 24)]
    ((name, alias),) = veths(world.node).items()
    assert alias == "web.1-r1 10.10.1.2"
    (port,) = world.node.ip("-details", "link", "show", "dev", name)
    assert port["master"] == "br4097"
    assert port["linkinfo"]["info_slave_data"]["isolated"] is True


def test_the_node_forwards_and_keeps_bridged_frames_from_iptables(world: World) -> None:
    assert world.node.setting("net/ipv4/ip_forward") == "1"
    assert world.node.setting("net/ipv4/conf/all/send_redirects") == "0"
    assert world.node.setting("net/bridge/bridge-nf-call-iptables") == "0"


def test_the_node_reaches_a_container(world: World, container: Space, tmp_path: Path) -> None:
    address = world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    with container.serving(tmp_path / "www", "from inside", port=8080):
        assert world.node.fetch(address, 8080) == "from inside"


def test_a_container_reaches_a_machine_beyond_the_node_under_the_nodes_address(
    world: World, container: Space, tmp_path: Path
) -> None:
    world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    # The machine beyond has no route to containers: an answer proves the translation.
    with world.beyond.serving(tmp_path / "www", "from beyond", port=80):
        assert container.fetch("10.77.0.1") == "from beyond"


def test_a_container_cannot_reach_a_port_of_its_node(
    world: World, container: Space, tmp_path: Path
) -> None:
    world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    with world.node.serving(tmp_path / "www", "for the control plane", port=9480):
        for address in ("10.77.0.101", "10.10.1.1"):
            assert "refused" in container.fetch(address, 9480)
        assert world.beyond.fetch("10.77.0.101", 9480) == "for the control plane"


def test_containers_of_one_node_reach_each_other_through_the_nodes_routing(
    world: World, container: Space, neighbour: Space, tmp_path: Path
) -> None:
    world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    address = world.agent.connect("web.2-r1", neighbour.pid, ATTACHMENT)
    with neighbour.serving(tmp_path / "www", "from next door", port=80):
        assert container.fetch(address) == "from next door"
    # Straight over the bridge there is no way: neither learns the other's MAC.
    known = {entry["dst"] for entry in container.ip("neigh", "show")}
    assert known == {"10.10.1.1"}


def test_containers_of_different_networks_do_not_reach_each_other(
    world: World, container: Space, neighbour: Space, tmp_path: Path
) -> None:
    world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    address = world.agent.connect("db.1-r1", neighbour.pid, OTHER)
    with neighbour.serving(tmp_path / "www", "secret", port=80):
        assert "timed out" in container.fetch(address)
        assert world.node.fetch(address) == "secret"


def test_nothing_from_outside_reaches_a_container_unasked(
    world: World, container: Space, tmp_path: Path
) -> None:
    address = world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    world.beyond.run("ip", "route", "add", "10.10.1.0/24", "via", "10.77.0.101")
    with container.serving(tmp_path / "www", "private", port=80):
        assert "timed out" in world.beyond.fetch(address)


def test_a_container_that_takes_another_address_is_not_heard(
    world: World, container: Space, neighbour: Space, tmp_path: Path
) -> None:
    world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    container.run("ip", "addr", "add", "10.99.0.1/32", "dev", "eth0")
    container.run(
        "ip", "route", "replace", "default", "via", "10.10.1.1", "dev", "eth0", "src", "10.99.0.1"
    )
    world.node.run("ip", "route", "add", "10.99.0.1", "dev", "br4097")
    with world.beyond.serving(tmp_path / "www", "from beyond", port=80):
        assert "timed out" in container.fetch("10.77.0.1")


def test_connecting_again_changes_nothing(world: World, container: Space) -> None:
    first = world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    before = container.lasting(), world.node.lasting()

    assert world.agent.connect("web.1-r1", container.pid, ATTACHMENT) == first
    assert (container.lasting(), world.node.lasting()) == before


def test_a_connection_left_half_made_is_made_again(world: World, container: Space) -> None:
    address = world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    container.run("ip", "route", "del", "default")

    assert world.agent.connect("web.1-r1", container.pid, ATTACHMENT) == address
    routes = {(r["dst"], r.get("gateway")) for r in container.ip("route", "show")}
    assert ("default", "10.10.1.1") in routes
    assert len(veths(world.node)) == 1


def test_a_connection_that_fails_half_way_leaves_nothing(world: World, container: Space) -> None:
    # The container has an eth0 of its own, so the pair cannot be made whole.
    container.run("ip", "link", "add", "eth0", "type", "bridge")
    with pytest.raises(AgentRefusedError, match=r"^cannot create link es[0-9a-f]{12}: File exists"):
        world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    assert veths(world.node) == {}
    assert container.link_names() == {"lo", "eth0"}

    container.run("ip", "link", "del", "eth0")
    # The address it had is the last to be handed out again.
    assert world.agent.connect("web.1-r2", container.pid, ATTACHMENT) == "10.10.1.3"


def test_a_step_that_fails_inside_the_container_takes_the_link_away_again(
    world: World, container: Space
) -> None:
    world.agent.ask("spoil_routes")
    with pytest.raises(AgentRefusedError, match=r"cannot add default route via 10\.99\.0\.1: "):
        world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    assert veths(world.node) == {}
    assert container.link_names() == {"lo"}


def test_a_process_without_a_namespace_of_its_own_is_refused(world: World) -> None:
    with pytest.raises(AgentRefusedError, match="no network namespace of its own"):
        world.agent.connect("web.1-r1", world.node.pid, ATTACHMENT)
    assert veths(world.node) == {}


def test_a_process_that_is_gone_is_refused(world: World) -> None:
    with Space() as gone:
        pid = gone.pid
    with pytest.raises(
        AgentRefusedError, match=rf"process {pid} has ended before it was connected"
    ):
        world.agent.connect("web.1-r1", pid, ATTACHMENT)
    assert veths(world.node) == {}


def test_a_foreign_link_with_our_bridges_name_is_refused_and_stays(
    world: World, container: Space
) -> None:
    world.node.run("ip", "link", "add", "br4097", "type", "bridge")
    before = world.node.lasting()
    with pytest.raises(AgentRefusedError, match="br4097 exists and is not ours"):
        world.agent.connect("web.1-r1", container.pid, ATTACHMENT)
    assert world.node.lasting() == before


def test_a_link_dies_with_its_container_and_its_address_rests(world: World) -> None:
    with Space() as first:
        world.agent.connect("web.1-r1", first.pid, ATTACHMENT)
    world.agent.ask("disconnect", "web.1-r1")
    eventually(lambda: not veths(world.node), within_s=5, what="the link is gone")
    with Space() as second:
        assert world.agent.connect("web.1-r2", second.pid, ATTACHMENT) == "10.10.1.3"


def test_to_disconnect_what_was_never_connected_is_no_fault(world: World) -> None:
    world.agent.ask("disconnect", "never-r1")
