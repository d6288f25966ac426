"""Speak rtnetlink: links, addresses and routes, as many requests in one send as are ready.

Knows the format of the messages and nothing of what they are for. Raw, because every
container start takes this path: an address is set in 10 us this way. A socket belongs
to the network namespace its thread was in when it was opened, for good.

Source: rtnetlink(7), netlink(7); numbers from linux/rtnetlink.h, linux/if_link.h,
linux/veth.h and linux/if_bridge.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Self

NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_DUMP, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD = 18, 20, 26, 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_BR_MCAST_SNOOPING, IFLA_BRPORT_ISOLATED = 23, 33
VETH_INFO_PEER = 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
IFF_UP = 0x1
NLA_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, mask of flags to change
_ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, proto, scope, type
_RECEIVE_BYTES = 1 << 17
# Of the requests sent at once: their answers must fit the socket's receive buffer.
_AT_ONCE = 64


class NetlinkError(OSError):
    """The kernel refused a request; the message says which, and the kernel's own reason."""


@dataclass(frozen=True, slots=True)
class Request:
    what: str
    """For the error message, such as "create link br4097"."""
    kind: int
    flags: int
    body: bytes
    tolerated: frozenset[int] = frozenset()
    """Error numbers that mean that it is already so."""


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    kind: str
    master: int
    group: int
    peer: int
    """Index of the other end of a veth pair, in that end's own namespace."""


@dataclass(frozen=True, slots=True)
class Route:
    destination: IPv4Interface
    gateway: IPv4Address | None
    link: int


class Rtnetlink:
    """One socket, used by one thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def carry_out(self, *requests: Request) -> None:
        """Send all requests at once and wait until each is done.

        Raises:
            NetlinkError: the first that was refused. Those after it were tried all the same.
        """
        for start in range(0, len(requests), _AT_ONCE):
            self._carry_out(requests[start : start + _AT_ONCE])

    def _carry_out(self, requests: Sequence[Request]) -> None:
        waiting: dict[int, Request] = {}
        packet = bytearray()
        for request in requests:
            self._sequence += 1
            waiting[self._sequence] = request
            flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
            length = _HEADER.size + len(request.body)
            packet += _HEADER.pack(length, request.kind, flags, self._sequence, 0) + request.body
        self._socket.send(packet)
        refused: NetlinkError | None = None
        while waiting:
            for kind, sequence, body in _messages(self._socket.recv(_RECEIVE_BYTES)):
                if kind == NLMSG_ERROR and sequence in waiting:
                    fault = _fault(waiting.pop(sequence), body)
                    refused = refused or fault
        if refused is not None:
            raise refused

    def _dump(self, what: str, kind: int, body: bytes, *, flags: int) -> list[bytes]:
        """Return the bodies of what the kernel lists, or of the one object asked for."""
        self._sequence += 1
        request = Request(what, kind, flags, body)
        header = (_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(_HEADER.pack(*header) + body)
        found: list[bytes] = []
        while True:
            for answer, sequence, content in _messages(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_DONE:
                    return found
                if answer == NLMSG_ERROR:
                    fault = _fault(request, content)
                    if fault is not None:
                        raise fault
                    return found
                found.append(content)

    def links(self) -> list[Link]:
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return [_link(m) for m in self._dump("list links", RTM_GETLINK, body, flags=NLM_F_DUMP)]

    def link(self, name: str) -> Link | None:
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, name)
        try:
            found = self._dump(f"find link {name}", RTM_GETLINK, body, flags=NLM_F_ACK)
        except NetlinkError as missing:
            if missing.errno == errno.ENODEV:
                return None
            raise
        return _link(found[0])

    def addresses(self, index: int) -> list[IPv4Interface]:
        """Return the IPv4 addresses of one link."""
        body = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
        listed = self._dump("list addresses", RTM_GETADDR, body, flags=NLM_F_DUMP)
        found: list[IPv4Interface] = []
        for message in listed:
            _, prefix, _, _, owner = _ADDRESS.unpack_from(message)
            attributes = _attributes(message[_ADDRESS.size :])
            if owner == index and IFA_LOCAL in attributes:
                found.append(IPv4Interface((IPv4Address(attributes[IFA_LOCAL]), prefix)))
        return found

    def routes(self) -> list[Route]:
        """Return the IPv4 routes of the main table."""
        body = _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        listed = self._dump("list routes", RTM_GETROUTE, body, flags=NLM_F_DUMP)
        return [
            _route(message) for message in listed if _ROUTE.unpack_from(message)[4] == RT_TABLE_MAIN
        ]


# ------------------------------------------------------------------------------------ requests


def create_bridge(name: str, *, mac: str, mtu: int, group: int) -> Request:
    # Without snooping the bridge keeps no multicast state and no timers.
    settings = _nested(IFLA_INFO_DATA, _byte(IFLA_BR_MCAST_SNOOPING, 0))
    body = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _text(IFLA_IFNAME, name)
        + _attribute(IFLA_ADDRESS, _mac(mac))
        + _number(IFLA_MTU, mtu)
        + _number(IFLA_GROUP, group)
        + _nested(IFLA_LINKINFO, _text(IFLA_INFO_KIND, "bridge") + settings)
    )
    return Request(f"create bridge {name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def create_veth(
    name: str, *, master: int, group: int, mtu: int, peer: str, peer_mac: str, netns_fd: int
) -> Request:
    """Create a pair: ``name`` here, as a port of a bridge, and ``peer`` in another namespace."""
    other = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _text(IFLA_IFNAME, peer)
        + _attribute(IFLA_ADDRESS, _mac(peer_mac))
        + _number(IFLA_MTU, mtu)
        + _number(IFLA_NET_NS_FD, netns_fd)
    )
    settings = _nested(IFLA_INFO_DATA, _attribute(VETH_INFO_PEER, other))
    body = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _text(IFLA_IFNAME, name)
        + _number(IFLA_MTU, mtu)
        + _number(IFLA_MASTER, master)
        + _number(IFLA_GROUP, group)
        + _nested(IFLA_LINKINFO, _text(IFLA_INFO_KIND, "veth") + settings)
    )
    return Request(f"create link {name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_up_port(name: str, *, alias: str) -> Request:
    """Start a bridge port that exchanges frames with the bridge alone, not with other ports."""
    isolated = _nested(IFLA_INFO_SLAVE_DATA, _byte(IFLA_BRPORT_ISOLATED, 1))
    body = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP)
        + _text(IFLA_IFNAME, name)
        + _text(IFLA_IFALIAS, alias)
        + _nested(IFLA_LINKINFO, _text(IFLA_INFO_SLAVE_KIND, "bridge") + isolated)
    )
    return Request(f"set up bridge port {name}", RTM_NEWLINK, 0, body)


def set_up(name: str) -> Request:
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name)
    return Request(f"set up link {name}", RTM_NEWLINK, 0, body)


def keep_from_link_local(name: str) -> Request:
    """Have a link give itself no link-local address, once it is started.

    A request of its own: in one that also starts the link, the kernel starts it first, and where
    the other end is up, as on Linux 6.1, it has its address before it learns of this.
    """
    mode = _byte(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
    body = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _text(IFLA_IFNAME, name)
        + _nested(IFLA_AF_SPEC, _nested(socket.AF_INET6, mode))
    )
    return Request(f"keep link {name} from a link-local address", RTM_NEWLINK, 0, body)


def change_link(name: str, *, mac: str, mtu: int) -> Request:
    body = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _text(IFLA_IFNAME, name)
        + _attribute(IFLA_ADDRESS, _mac(mac))
        + _number(IFLA_MTU, mtu)
    )
    return Request(f"change link {name}", RTM_NEWLINK, 0, body)


def move_to_group(name: str, group: int) -> Request:
    body = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _text(IFLA_IFNAME, name)
        + _number(IFLA_GROUP, group)
    )
    return Request(
        f"move link {name} to group {group}", RTM_NEWLINK, 0, body, frozenset({errno.ENODEV})
    )


def delete_group(group: int) -> Request:
    """Delete all links of a group: the kernel waits for its readers once, not once a link."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _number(IFLA_GROUP, group)
    return Request(f"delete link group {group}", RTM_DELLINK, 0, body, frozenset({errno.ENODEV}))


def add_address(index: int, address: IPv4Interface) -> Request:
    body = (
        _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, RT_SCOPE_UNIVERSE, index)
        + _attribute(IFA_LOCAL, address.packed)
        + _attribute(IFA_ADDRESS, address.packed)
    )
    return Request(f"add address {address}", RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_address(index: int, address: IPv4Interface) -> Request:
    body = _ADDRESS.pack(
        socket.AF_INET, address.network.prefixlen, 0, RT_SCOPE_UNIVERSE, index
    ) + _attribute(IFA_LOCAL, address.packed)
    return Request(
        f"delete address {address}", RTM_DELADDR, 0, body, frozenset({errno.EADDRNOTAVAIL})
    )


def add_host_route(index: int, destination: IPv4Address) -> Request:
    """Make one address reachable directly on the link."""
    header = (socket.AF_INET, 32, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST, 0)
    body = (
        _ROUTE.pack(*header)
        + _attribute(RTA_DST, destination.packed)
        + _attribute(RTA_OIF, struct.pack("=i", index))
    )
    return Request(f"add route {destination}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def add_default_route(index: int, gateway: IPv4Address) -> Request:
    scope = RT_SCOPE_UNIVERSE
    header = (socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0)
    body = (
        _ROUTE.pack(*header)
        + _attribute(RTA_GATEWAY, gateway.packed)
        + _attribute(RTA_OIF, struct.pack("=i", index))
    )
    what = f"add default route via {gateway}"
    return Request(what, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


# ---------------------------------------------------------------------------- writing and reading


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _nested(kind: int, attributes: bytes) -> bytes:
    return _attribute(kind, attributes)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _byte(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=B", value))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, sequence number and body of each message of a datagram."""
    position = 0
    while position + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, position)
        yield kind, sequence, data[position + _HEADER.size : position + length]
        position += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        found[kind & NLA_TYPE_MASK] = data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
    return found


def _fault(request: Request, body: bytes) -> NetlinkError | None:
    """Read an acknowledgement: a negative error number, the request's header, attributes."""
    number = -struct.unpack_from("=i", body)[0]
    if number == 0 or number in request.tolerated:
        return None
    attributes = _attributes(body[4 + _HEADER.size :])
    told = attributes.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    reason = f"{os.strerror(number)}{f' ({told})' if told else ''}"
    return NetlinkError(number, reason, request.what)


def _link(message: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(message)
    attributes = _attributes(message[_LINK.size :])

    def number(kind: int) -> int:
        value: int = struct.unpack("=I", attributes.get(kind, bytes(4)))[0]
        return value

    kind = _attributes(attributes.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"")
    return Link(
        index=index,
        name=attributes[IFLA_IFNAME].rstrip(b"\0").decode(),
        up=bool(flags & IFF_UP),
        mtu=number(IFLA_MTU),
        mac=attributes.get(IFLA_ADDRESS, b"").hex(":"),
        kind=kind.rstrip(b"\0").decode(),
        master=number(IFLA_MASTER),
        group=number(IFLA_GROUP),
        peer=number(IFLA_LINK),
    )


def _route(message: bytes) -> Route:
    length = _ROUTE.unpack_from(message)[1]
    attributes = _attributes(message[_ROUTE.size :])
    gateway = attributes.get(RTA_GATEWAY)
    return Route(
        destination=IPv4Interface((IPv4Address(attributes.get(RTA_DST, bytes(4))), length)),
        gateway=IPv4Address(gateway) if gateway else None,
        link=struct.unpack("=i", attributes.get(RTA_OIF, bytes(4)))[0],
    )
