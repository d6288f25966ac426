"""Hand out the addresses of the node's blocks, and remember on disk who has which.

An address that was freed rests until every other has been used since: connections and
caches that still mean its last holder are then long gone.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from agent.errors import NetworkError
from agent.net.topology import Segment


class NoAddressError(NetworkError):
    """Every address of the node's block is in use."""


class DamagedBookError(NetworkError):
    """The file of addresses is not one that the agent wrote to its end."""


@dataclass(slots=True)
class Block:
    """The addresses of one segment: who has which, and which were freed, the longest ago first."""

    segment: Segment
    held: dict[str, IPv4Address] = field(default_factory=dict)
    freed: list[IPv4Address] = field(default_factory=list)

    def allocate(self, container_id: str) -> IPv4Address:
        """Return the container's address, a new one if it has none.

        Raises:
            NoAddressError: all are held.
        """
        if container_id in self.held:
            return self.held[container_id]
        address = self._never_used() or self._longest_freed()
        if address is None:
            block = self.segment.block
            raise NoAddressError(f"all {len(self.held)} addresses of block {block} are in use")
        self.held[container_id] = address
        return address

    def free(self, container_id: str) -> IPv4Address | None:
        address = self.held.pop(container_id, None)
        if address is not None:
            self.freed.append(address)
        return address

    def _never_used(self) -> IPv4Address | None:
        # They are handed out in order, and one that was used is held or freed ever after.
        block = self.segment.block
        number = int(block.network_address) + 2 + len(self.held) + len(self.freed)
        return IPv4Address(number) if number < int(block.broadcast_address) else None

    def _longest_freed(self) -> IPv4Address | None:
        return self.freed.pop(0) if self.freed else None


class AddressBook:
    """All blocks of the node. Changes are in memory until `save`."""

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        self._blocks = {block.segment.network_id: block for block in blocks}

    @property
    def segments(self) -> list[Segment]:
        return [block.segment for block in self._blocks.values()]

    def block(self, segment: Segment) -> Block:
        """Return the block of the segment's network; a network with a new block starts anew."""
        known = self._blocks.get(segment.network_id)
        if known is None or known.segment.block != segment.block:
            known = self._blocks[segment.network_id] = Block(segment)
        known.segment = segment
        return known

    def free(self, container_id: str) -> bool:
        """Free whatever the container holds; tell whether that was anything."""
        freed = [block.free(container_id) for block in self._blocks.values()]
        return any(freed)

    def keep_only(self, container_ids: Collection[str]) -> list[str]:
        """Free the addresses of all other containers; return whose they were."""
        gone = [
            holder
            for block in self._blocks.values()
            for holder in block.held
            if holder not in container_ids
        ]
        for holder in gone:
            self.free(holder)
        return gone


def load(path: Path) -> AddressBook:
    """Read the book; an absent file is an empty book.

    Raises:
        DamagedBookError: the file is not one that `save` wrote to its end.
    """
    try:
        content = json.loads(path.read_text())
        return AddressBook(_block_of(entry) for entry in content["networks"])
    except FileNotFoundError:
        return AddressBook()
    except (ValueError, KeyError, TypeError) as fault:
        raise DamagedBookError(f"{path} is damaged: {fault}") from fault


def save(book: AddressBook, path: Path) -> None:
    """Replace the file in one step.

    Not flushed to the disk: it must survive the agent, not the machine, because no
    container survives that either.
    """
    blocks = (book.block(segment) for segment in book.segments)
    content = {"networks": [_entry_of(block) for block in blocks]}
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(json.dumps(content))
    draft.replace(path)


def _entry_of(block: Block) -> dict[str, Any]:
    return {
        **asdict(block.segment),
        "cidr": str(block.segment.cidr),
        "block": str(block.segment.block),
        # As numbers: to spell out a full block takes 0.7 ms, at every connect and disconnect.
        "held": {holder: int(address) for holder, address in block.held.items()},
        "freed": [int(address) for address in block.freed],
    }


def _block_of(entry: dict[str, Any]) -> Block:
    return Block(
        Segment(
            network_id=entry["network_id"],
            cidr=IPv4Network(entry["cidr"]),
            block=IPv4Network(entry["block"]),
            vni=entry["vni"],
            mtu=entry["mtu"],
        ),
        held={holder: IPv4Address(address) for holder, address in entry["held"].items()},
        freed=[IPv4Address(address) for address in entry["freed"]],
    )
