"""What a node's network must look like."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.net.topology import (
    Segment,
    bridge_of,
    bridge_settings,
    link_name,
    mac_of,
    node_settings,
    port_of,
    rules_of,
    segment_of,
)
from estiba.v1 import types_pb2 as v1

SEGMENT = Segment("net-1", IPv4Network("10.10.0.0/16"), IPv4Network("10.10.3.0/24"), 4097, 1450)


def attachment(
    *, cidr: str = "10.10.0.0/16", block: str = "10.10.3.0/24", vni: int = 4097, mtu: int = 1450
) -> v1.NetworkAttachment:
    return v1.NetworkAttachment(network_id="net-1", cidr=cidr, block=block, vni=vni, mtu=mtu)


def test_an_attachment_is_read_as_it_stands() -> None:
    assert segment_of(attachment()) == SEGMENT


@pytest.mark.parametrize(
    ("contradiction", "reason"),
    [
        (attachment(block="10.11.0.0/24"), "outside of the network 10.10.0.0/16"),
        (attachment(block="10.10.3.0/31"), "no room"),
        (attachment(block="10.10.3.1/24"), "has host bits set"),
        (attachment(cidr=""), "cannot be empty"),
        (attachment(vni=0), "VNI 0"),
        (attachment(vni=2**24), "VNI 16777216"),
        (attachment(mtu=0), "MTU 0"),
    ],
)
def test_an_attachment_that_contradicts_itself_is_refused(
    contradiction: v1.NetworkAttachment, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        segment_of(contradiction)


def test_the_gateway_is_the_first_address_of_the_block() -> None:
    bridge = bridge_of(SEGMENT)
    assert str(bridge.address) == "10.10.3.1/24"
    assert (bridge.name, bridge.mac, bridge.mtu) == ("br4097", "02:00:0a:0a:03:01", 1450)


def test_a_port_carries_its_container_and_address_where_a_person_finds_them() -> None:
    port = port_of(SEGMENT, "svc.1.1.1-r2", IPv4Address("10.10.3.7"))
    assert port.alias == "svc.1.1.1-r2 10.10.3.7"
    assert (port.bridge, str(port.gateway), port.mac) == (
        "br4097",
        "10.10.3.1",
        "02:00:0a:0a:03:07",
    )


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_link_names_fit_the_kernel_and_differ(one: str, other: str) -> None:
    assert len(link_name(one)) <= 15
    assert (link_name(one) == link_name(other)) == (one == other)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_every_mac_is_local_and_of_one_station(address: IPv4Address) -> None:
    first = int(mac_of(address).split(":")[0], 16)
    assert first & 0b11 == 0b10


def test_without_networks_the_table_goes() -> None:
    assert rules_of([]).splitlines() == ["add table ip estiba", "delete table ip estiba"]


def test_the_rules_do_not_depend_on_the_order_of_networks() -> None:
    other = Segment("net-2", IPv4Network("10.20.0.0/16"), IPv4Network("10.20.3.0/24"), 12, 1450)
    assert rules_of([SEGMENT, other]) == rules_of([other, SEGMENT])


def test_chains_accept_what_is_not_about_our_bridges() -> None:
    chains = [line for line in rules_of([SEGMENT]).splitlines() if "policy" in line]
    assert len(chains) == 3
    assert all("policy accept" in line for line in chains)


def test_only_features_that_a_kernel_may_lack_are_optional() -> None:
    optional = [s.path for s in (*node_settings(), *bridge_settings(SEGMENT)) if s.optional]
    assert optional == [
        "net/bridge/bridge-nf-call-iptables",
        "net/ipv6/conf/br4097/disable_ipv6",
    ]
