"""Make the kernel agree with what `topology` wants, by comparing first.

Decides nothing, and touches only what carries our names and our link group. Everything
here runs in the network thread, in the node's own network namespace.
"""

import errno
import logging
from collections.abc import Collection, Sequence
from ipaddress import IPv4Interface
from pathlib import Path

from agent.errors import NetworkError
from agent.net import netlink
from agent.net.namespaces import Namespace, inside
from agent.net.netlink import Link, NetlinkError, Rtnetlink
from agent.net.nft import Nftables
from agent.net.topology import (
    CONTAINER_LINK,
    LINK_GROUP,
    LINK_PREFIX,
    Bridge,
    Port,
    Segment,
    Setting,
    bridge_of,
    bridge_settings,
    node_settings,
    rules_of,
)

log = logging.getLogger(__name__)

# Links on their way out: moved here, then deleted together.
_DOOMED_GROUP = LINK_GROUP + 1
_SETTINGS = Path("/proc/sys")


class NodeNetwork:
    """The node's side of all networks. Make it and use it in one thread."""

    def __init__(self) -> None:
        self._home = Namespace.of_this_thread()
        self._node = Rtnetlink()
        self._nft = Nftables()
        self._ipv6 = (_SETTINGS / "net/ipv6").is_dir()
        self._segments: list[Segment] = []
        self._bridges: dict[str, int] = {}

    def close(self) -> None:
        """Let go of the kernel; what was made stays."""
        self._nft.close()
        self._node.close()
        self._home.close()

    def converge(self, segments: Sequence[Segment]) -> None:
        """Make settings, bridges and rules as they must be for exactly these segments."""
        _apply_settings(node_settings())
        for segment in segments:
            self._bridges[segment.bridge] = self._converge_bridge(bridge_of(segment))
            _apply_settings(bridge_settings(segment))
        self._nft.run(rules_of(segments))
        self._segments = list(segments)

    def remove(self) -> None:
        """Delete every link of ours, and the table."""
        self._nft.run(rules_of([]))
        ours = [each for each in self._node.links() if each.group in {LINK_GROUP, _DOOMED_GROUP}]
        self.delete([link.name for link in ours])
        self._segments, self._bridges = [], {}

    def has(self, segment: Segment) -> bool:
        """Tell whether the segment was converged and nothing about it has changed since."""
        return segment in self._segments

    def _converge_bridge(self, wanted: Bridge) -> int:
        link = self._node.link(wanted.name)
        if link is None:
            create = netlink.create_bridge(
                wanted.name, mac=wanted.mac, mtu=wanted.mtu, group=LINK_GROUP
            )
            self._node.carry_out(create)
            link = _found(self._node, wanted.name)
        elif link.kind != "bridge" or link.group != LINK_GROUP:
            raise NetworkError(f"link {wanted.name} exists and is not ours: rename or delete it")
        elif (link.mac, link.mtu) != (wanted.mac, wanted.mtu):
            self._node.carry_out(netlink.change_link(wanted.name, mac=wanted.mac, mtu=wanted.mtu))
        present = self._node.addresses(link.index)
        changes = [
            netlink.delete_address(link.index, address)
            for address in present
            if address != wanted.address
        ]
        if wanted.address not in present:
            changes.append(netlink.add_address(link.index, wanted.address))
        if not link.up:
            changes.append(netlink.set_up(wanted.name))
        self._node.carry_out(*changes)
        return link.index

    def connect(self, port: Port, pid: int) -> None:
        """Give the process's network namespace its link, address and routes.

        What is there already and right is left alone. If a step fails, none of it is left.

        Raises:
            OSError, NetworkError: what the kernel refused.
        """
        try:
            namespace = Namespace.of_process(pid)
        except (FileNotFoundError, ProcessLookupError) as gone:
            raise NetworkError(f"process {pid} has ended before it was connected") from gone
        with namespace as container:
            if container.inode == self._home.inode:
                raise NetworkError(f"process {pid} has no network namespace of its own")
            with inside(container, home=self._home):
                there = Rtnetlink()
            with there:
                if not self._is_connected(port, there):
                    self._make(port, container, there)

    def _make(self, port: Port, container: Namespace, there: Rtnetlink) -> None:
        try:
            create = netlink.create_veth(
                port.link,
                master=self._bridges[port.bridge],
                group=LINK_GROUP,
                mtu=port.mtu,
                peer=CONTAINER_LINK,
                peer_mac=port.mac,
                netns_fd=container.fd,
            )
            self._node.carry_out(
                create,
                *self._ipv4_alone(port.link),
                netlink.set_up_port(port.link, alias=port.alias),
            )
            link = _found(there, CONTAINER_LINK)
            there.carry_out(
                netlink.set_up("lo"),
                netlink.add_address(link.index, IPv4Interface((port.address, 32))),
                *self._ipv4_alone(CONTAINER_LINK),
                netlink.set_up(CONTAINER_LINK),
                netlink.add_host_route(link.index, port.gateway),
                netlink.add_default_route(link.index, port.gateway),
            )
        except (OSError, NetworkError):
            self.delete([port.link])
            raise

    def _ipv4_alone(self, link: str) -> list[netlink.Request]:
        return [netlink.keep_from_link_local(link)] if self._ipv6 else []

    def _is_connected(self, port: Port, there: Rtnetlink) -> bool:
        """Look whether an earlier call did it all; what it left half-made is deleted."""
        here = self._node.link(port.link)
        if here is None:
            return False
        if here.group != LINK_GROUP:
            raise NetworkError(f"link {port.link} exists and is not ours: rename or delete it")
        inner = there.link(CONTAINER_LINK)
        if (
            inner is not None
            and inner.peer == here.index
            and here.master == self._bridges[port.bridge]
            and here.up
            and inner.up
            and IPv4Interface((port.address, 32)) in there.addresses(inner.index)
            and any(r.gateway == port.gateway and r.link == inner.index for r in there.routes())
        ):
            return True
        self.delete([port.link])
        return False

    def links(self) -> list[Link]:
        """Return the node's ends of all containers' links, whoever they belong to."""
        return [
            link
            for link in self._node.links()
            if link.group in {LINK_GROUP, _DOOMED_GROUP} and link.name.startswith(LINK_PREFIX)
        ]

    def delete(self, names: Collection[str]) -> None:
        """Delete links; those that are gone already are no fault."""
        if names:
            moves = [netlink.move_to_group(name, _DOOMED_GROUP) for name in names]
            self._node.carry_out(*moves, netlink.delete_group(_DOOMED_GROUP))


def _found(netlink_socket: Rtnetlink, name: str) -> Link:
    link = netlink_socket.link(name)
    if link is None:
        raise NetlinkError(errno.ENODEV, "another program has deleted it", f"find link {name}")
    return link


def _apply_settings(settings: Sequence[Setting]) -> None:
    """Write what differs: writing ip_forward, even the same, resets settings of each link.

    Raises:
        OSError: a file that must be there is missing or not writable.
    """
    for setting in settings:
        path = _SETTINGS / setting.path
        try:
            if path.read_text().strip() != setting.value:
                path.write_text(setting.value)
        except FileNotFoundError:
            if not setting.optional:
                raise
