"""Decide what a node's network must look like: links, addresses, routes, settings, nft rules.

Pure: `agent.net.apply` makes the kernel agree. Containers get a /32 and a gateway, and
their bridge ports are isolated, so every packet crosses the node's own IP stack, where
one chain says what may pass.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from estiba.v1 import types_pb2 as v1

TABLE = "estiba"
CONTAINER_LINK = "eth0"
LINK_PREFIX = "es"
LEAST_MTU = 576
# Link group of everything we make, by which leftovers are found; "est" in ASCII.
LINK_GROUP = 0x657374


@dataclass(frozen=True, slots=True)
class Segment:
    """This node's part of one network."""

    network_id: str
    cidr: IPv4Network
    block: IPv4Network
    vni: int
    mtu: int

    @property
    def gateway(self) -> IPv4Address:
        return self.block.network_address + 1

    @property
    def bridge(self) -> str:
        return f"br{self.vni}"


@dataclass(frozen=True, slots=True)
class Bridge:
    name: str
    mac: str
    mtu: int
    address: IPv4Interface


@dataclass(frozen=True, slots=True)
class Port:
    """One container's link: a veth pair from the bridge to ``eth0`` in its namespace."""

    link: str
    alias: str
    bridge: str
    mac: str
    mtu: int
    address: IPv4Address
    gateway: IPv4Address


@dataclass(frozen=True, slots=True)
class Setting:
    """A file under /proc/sys and what it must say."""

    path: str
    value: str
    optional: bool = False
    """The file may be missing: the kernel has no such feature, so nothing needs setting."""


def segment_of(attachment: v1.NetworkAttachment) -> Segment:
    """Read an attachment.

    Raises:
        ValueError: it contradicts itself; the sentence says how.
    """
    cidr, block = IPv4Network(attachment.cidr), IPv4Network(attachment.block)
    if not block.subnet_of(cidr):
        raise ValueError(f"block {block} lies outside of the network {cidr}")
    if block.prefixlen > 30:
        raise ValueError(f"block {block} has no room for a gateway and a container")
    if attachment.mtu < LEAST_MTU:
        raise ValueError(f"MTU {attachment.mtu} is below {LEAST_MTU}, the least for IPv4")
    if not 0 < attachment.vni < 2**24:
        raise ValueError(f"VNI {attachment.vni} is not between 1 and {2**24 - 1}")
    return Segment(attachment.network_id, cidr, block, attachment.vni, attachment.mtu)


def bridge_of(segment: Segment) -> Bridge:
    # Without a MAC of its own a bridge takes one of its ports' and changes it when they come
    # and go, and containers would keep sending to the old one.
    gateway = segment.gateway
    return Bridge(
        name=segment.bridge,
        mac=mac_of(gateway),
        mtu=segment.mtu,
        address=IPv4Interface((gateway, segment.block.prefixlen)),
    )


def port_of(segment: Segment, container_id: str, address: IPv4Address) -> Port:
    return Port(
        link=link_name(container_id),
        alias=f"{container_id} {address}",
        bridge=segment.bridge,
        mac=mac_of(address),
        mtu=segment.mtu,
        address=address,
        gateway=segment.gateway,
    )


def link_name(container_id: str) -> str:
    """Name the node's end of a container's link: the kernel takes 15 characters, ids are longer."""
    return LINK_PREFIX + hashlib.sha256(container_id.encode()).hexdigest()[:12]


def mac_of(address: IPv4Address) -> str:
    """Derive a local MAC: an address that is handed out again then fits old ARP entries."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x00" + address.packed)


def node_settings() -> list[Setting]:
    """Return what the node needs whatever its networks; in this order.

    Bridged frames stay out of iptables: whatever the bridge carries between a port and
    the node passes the IP stack once, and that is where the rules are.
    """
    return [
        Setting("net/ipv4/ip_forward", "1"),
        Setting("net/ipv4/conf/all/send_redirects", "0"),
        Setting("net/bridge/bridge-nf-call-iptables", "0", optional=True),
    ]


def bridge_settings(segment: Segment) -> list[Setting]:
    # The node answers on the bridge with IPv4 only: a link-local IPv6 address would be a way
    # around the rules below.
    return [
        Setting(f"net/ipv4/conf/{segment.bridge}/send_redirects", "0"),
        Setting(f"net/ipv6/conf/{segment.bridge}/disable_ipv6", "1", optional=True),
    ]


def rules_of(segments: Sequence[Segment]) -> str:
    """Render the table as one nft transaction that replaces the one before.

    Traffic that touches none of our bridges passes untouched: the machine may be a router
    or a Docker host, and a drop here could not be overruled elsewhere.
    """
    replace = f"add table ip {TABLE}\ndelete table ip {TABLE}\n"
    if not segments:
        return replace
    names = sorted(f'"{segment.bridge}"' for segment in segments)
    ordered = sorted(segments, key=lambda segment: segment.vni)
    sources = "\n".join(
        f'    iifname "{s.bridge}" ip saddr != {s.block} counter drop comment "not its address"'
        for s in ordered
    )
    egress = "\n".join(
        f"    ip saddr {s.block} ip daddr != {s.cidr} oifname != @bridges masquerade"
        for s in ordered
    )
    return f"""{replace}table ip {TABLE} {{
  set bridges {{
    type ifname
    elements = {{ {", ".join(names)} }}
  }}
  set within {{
    type ifname . ifname
    elements = {{ {", ".join(f"{name} . {name}" for name in names)} }}
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
{sources}
    ct state established,related accept
    iifname . oifname @within accept
    oifname @bridges counter drop comment "from another network"
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != @bridges accept
    ct state established,related accept
    ip protocol icmp accept
    counter reject comment "the node's own ports"
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{egress}
  }}
}}
"""
