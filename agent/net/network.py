"""The agent's networks: connect containers, and find them again after a restart.

One thread does all of it, one step after the other, in the node's own network
namespace. Nothing is undone when the agent ends: containers keep their links.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from agent.errors import NetworkError
from agent.net import addresses
from agent.net.addresses import AddressBook, DamagedBookError
from agent.net.apply import NodeNetwork
from agent.net.netlink import NetlinkError
from agent.net.topology import Segment, link_name, port_of, segment_of
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

T = TypeVar("T")
# A container's link dies with its network namespace, a moment after its last process.
LINK_DEATH_S = 2.0


class Network:
    """Use it from one event loop: `start` first, `close` last."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "network.json"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        # All below belong to the network thread.
        self._book = AddressBook()
        self._node: NodeNetwork | None = None
        self._leaving: dict[str, float] = {}

    async def start(self) -> None:
        """Make what the networks known from before need.

        Raises:
            NetworkError: the kernel refused.
        """
        await self._in_thread(self._start)

    async def connect(self, container_id: str, pid: int, attachment: v1.NetworkAttachment) -> str:
        """Connect the network namespace of ``pid``, and return the container's address.

        Call it as often as you like: a container that is connected keeps its address.
        When it fails, nothing of it is left.

        Raises:
            NetworkError: one sentence.
        """
        address = await self._in_thread(lambda: self._connect(container_id, pid, attachment))
        return str(address)

    async def disconnect(self, container_id: str) -> None:
        """Free the container's address, after its last process has ended. Never fails for one
        that was not connected.
        """
        await self._in_thread(lambda: self._disconnect(container_id))

    async def adopt(self, container_ids: Collection[str]) -> None:
        """Keep the living containers' addresses, free all others, and delete links of none."""
        living = frozenset(container_ids)
        await self._in_thread(lambda: self._adopt(living))

    async def remove(self) -> None:
        """Leave nothing of any network: no link, no rule, no address known."""
        await self._in_thread(self._remove)

    async def close(self) -> None:
        """Let go of the kernel; containers stay connected."""
        await self._in_thread(self._close)
        self._thread.shutdown()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, call)
        except OSError as fault:
            raise NetworkError(_sentence(fault)) from fault

    # ---------------------------------------------------------------- in the network thread

    def _start(self) -> None:
        try:
            self._book = addresses.load(self._path)
        except DamagedBookError as fault:
            # It is damaged only if the machine itself stopped, and with it all containers.
            log.warning("starting without known addresses: %s", fault)
        self._kernel().converge(self._book.segments)

    def _kernel(self) -> NodeNetwork:
        if self._node is None:
            self._node = NodeNetwork()
        return self._node

    def _connect(
        self, container_id: str, pid: int, attachment: v1.NetworkAttachment
    ) -> IPv4Address:
        kernel = self._kernel()
        segment = self._segment(attachment)
        block = self._book.block(segment)
        if not kernel.has(segment):
            kernel.converge(self._book.segments)
        self._sweep_leaving()
        # On disk before in the kernel: an agent killed in between must not give the address
        # to another.
        known = container_id in block.held
        address = block.allocate(container_id)
        if not known:
            self._save()
        try:
            kernel.connect(port_of(segment, container_id, address), pid)
        except (OSError, NetworkError):
            self._book.free(container_id)
            self._save()
            raise
        return address

    def _disconnect(self, container_id: str) -> None:
        if self._book.free(container_id):
            self._leaving[link_name(container_id)] = time.monotonic()
            self._save()

    def _adopt(self, living: frozenset[str]) -> None:
        gone = self._book.keep_only(living)
        if gone:
            log.info("freed the addresses of %d containers that are gone", len(gone))
            self._save()
        wanted = {link_name(container_id) for container_id in living}
        stray = [link.name for link in self._kernel().links() if link.name not in wanted]
        if stray:
            log.info("deleting %d links without a container", len(stray))
            self._kernel().delete(stray)

    def _sweep_leaving(self) -> None:
        """Delete links that outlived their containers, before their addresses are used again."""
        due = time.monotonic() - LINK_DEATH_S
        names = [name for name, since in self._leaving.items() if since < due]
        if names:
            present = {link.name for link in self._kernel().links()}
            self._kernel().delete(present.intersection(names))
            for name in names:
                del self._leaving[name]

    def _segment(self, attachment: v1.NetworkAttachment) -> Segment:
        try:
            return segment_of(attachment)
        except ValueError as fault:
            raise NetworkError(f"network {attachment.network_name}: {fault}") from fault

    def _save(self) -> None:
        addresses.save(self._book, self._path)

    def _remove(self) -> None:
        self._kernel().remove()
        self._book = AddressBook()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._node is not None:
            self._node.close()
            self._node = None


def _sentence(fault: OSError) -> str:
    if isinstance(fault, NetlinkError):
        return f"cannot {fault.filename}: {fault.strerror}"
    return f"{fault.filename}: {fault.strerror}" if fault.filename else str(fault)
