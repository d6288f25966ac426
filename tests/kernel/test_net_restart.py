"""The agent's network after the agent was killed: containers keep all, leftovers go."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_net_containers import ATTACHMENT, veths
from tests.support.network import Agent, Space, join, spaces
from tests.support.waiting import eventually


@pytest.fixture
def node() -> Iterator[Space]:
    with spaces(2) as (beyond, node):
        join(beyond, "p-n1", "10.77.0.1/24", node, "10.77.0.101/24")
        yield node


def test_a_killed_agent_leaves_containers_connected_and_the_next_keeps_their_addresses(
    node: Space, tmp_path: Path
) -> None:
    with Space() as container:
        first = Agent(node, tmp_path)
        address = first.connect("web.1-r1", container.pid, ATTACHMENT)
        before = container.lasting(), node.lasting()
        first.kill()
        with container.serving(tmp_path / "www", "still here", port=80):
            assert node.fetch(address) == "still here"
            with Agent(node, tmp_path) as second:
                second.ask("adopt", ["web.1-r1"])
                assert node.fetch(address) == "still here"
                assert (container.lasting(), node.lasting()) == before
                assert second.connect("web.1-r1", container.pid, ATTACHMENT) == address
                with Space() as another:
                    assert second.connect("web.2-r1", another.pid, ATTACHMENT) != address


def test_what_belongs_to_no_living_container_is_freed_and_swept(
    node: Space, tmp_path: Path
) -> None:
    with Space() as living, Space() as forgotten:
        first = Agent(node, tmp_path)
        first.connect("web.1-r1", living.pid, ATTACHMENT)
        first.connect("web.2-r1", forgotten.pid, ATTACHMENT)
        first.kill()
        with Agent(node, tmp_path) as second:
            second.ask("adopt", ["web.1-r1"])
            assert list(veths(node).values()) == ["web.1-r1 10.10.1.2"]
            assert forgotten.link_names() == {"lo"}


def test_a_foreign_link_and_a_foreign_table_are_never_touched(node: Space, tmp_path: Path) -> None:
    node.run("nft", "add table ip theirs; add chain ip theirs keep")
    node.run("ip", "link", "add", "br0", "type", "bridge")
    node.run("ip", "link", "add", "es0123456789ab", "type", "veth", "peer", "name", "other")
    before = node.run("nft", "list", "table", "ip", "theirs")
    with Agent(node, tmp_path) as agent, Space() as container:
        agent.connect("web.1-r1", container.pid, ATTACHMENT)
        agent.ask("adopt", [])
        assert {"br0", "es0123456789ab", "other"} <= node.link_names()
        assert node.run("nft", "list", "table", "ip", "theirs") == before


def test_the_next_agent_repairs_what_was_changed_meanwhile(node: Space, tmp_path: Path) -> None:
    with Space() as container:
        first = Agent(node, tmp_path)
        first.connect("web.1-r1", container.pid, ATTACHMENT)
        first.kill()
        rules = node.run("nft", "list", "table", "ip", "estiba")
        node.run("nft", "delete table ip estiba")
        node.run("ip", "addr", "add", "10.10.9.1/24", "dev", "br4097")
        node.run("ip", "addr", "del", "10.10.1.1/24", "dev", "br4097")
        node.run("ip", "link", "set", "br4097", "down", "mtu", "1400")
        node.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
        with Agent(node, tmp_path):
            (bridge,) = node.ip("addr", "show", "dev", "br4097")
            assert [entry["local"] for entry in bridge["addr_info"]] == ["10.10.1.1"]
            assert (bridge["mtu"], "UP" in bridge["flags"]) == (1450, True)
            assert node.setting("net/ipv4/ip_forward") == "1"
            assert node.run("nft", "list", "table", "ip", "estiba") == rules


def test_a_damaged_book_of_addresses_does_not_keep_the_agent_from_starting(
    node: Space, tmp_path: Path
) -> None:
    (tmp_path / "network.json").write_text('{"networks": [{"network_id"')
    with Agent(node, tmp_path) as agent, Space() as container:
        assert agent.connect("web.1-r1", container.pid, ATTACHMENT) == "10.10.1.2"


def test_a_link_that_outlives_its_container_is_deleted_before_the_next_is_connected(
    node: Space, tmp_path: Path
) -> None:
    with Agent(node, tmp_path) as agent, Space() as lingering, Space() as following:
        agent.connect("web.1-r1", lingering.pid, ATTACHMENT)
        agent.ask("disconnect", "web.1-r1")

        def swept() -> bool:
            agent.connect("web.1-r2", following.pid, ATTACHMENT)
            return list(veths(node).values()) == ["web.1-r2 10.10.1.3"]

        eventually(swept, within_s=10, what="the old link is swept", every_s=0.5)
