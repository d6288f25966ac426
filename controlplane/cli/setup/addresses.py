"""Decide under which address other machines reach this one. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from controlplane.cli.errors import CliError

# What the agent makes has this link group; its addresses are the containers' gateways.
OUR_LINKS = 0x657374


@dataclass(frozen=True, slots=True)
class Local:
    """An address of this machine, and the link that has it."""

    address: str
    link: str

    def __str__(self) -> str:
        return f"{self.address} on {self.link}"


def parse(shown: str) -> list[Local]:
    """Read what `ip -json -4 address show up` shows: addresses that others may reach."""
    return [
        Local(each["local"], link["ifname"])
        for link in json.loads(shown or "[]")
        if not _is_ours(link)
        for each in link.get("addr_info", ())
        if each.get("scope") == "global"
    ]


def choose(found: Sequence[Local], said: str) -> str:
    """Return the address to advertise.

    Args:
        said: what a person said, an address or the name of a link; "" if nothing.

    Raises:
        CliError: there is none, or there are several to choose from.
    """
    if said and _is_address(said):
        return _usable(said)
    candidates = [each for each in found if not said or each.link == said]
    if not candidates:
        raise CliError(_nothing(found, said))
    if len(candidates) > 1:
        which = f"{said} has" if said else "this machine has"
        raise CliError(
            f"{which} several addresses: say which of them other machines reach, by "
            f"--advertise-addr: {_listed(candidates)}"
        )
    return candidates[0].address


def _nothing(found: Sequence[Local], said: str) -> str:
    if not said:
        return "this machine has no IPv4 address that others reach: say one by --advertise-addr"
    here = f"; this machine has {_listed(found)}" if found else ""
    return (
        f"--advertise-addr {said} is neither an IPv4 address nor a link of this machine that has "
        f"one{here}"
    )


def _listed(found: Sequence[Local]) -> str:
    return ", ".join(map(str, found))


def _is_address(said: str) -> bool:
    try:
        IPv4Address(said)
    except AddressValueError:
        return False
    return True


def _usable(said: str) -> str:
    address = IPv4Address(said)
    if address.is_unspecified or address.is_multicast:
        raise CliError(f"--advertise-addr {said} is no address of one machine")
    return said


def _is_ours(link: dict[str, Any]) -> bool:
    try:
        return int(str(link.get("group", "")), 0) == OUR_LINKS
    except ValueError:
        return False
