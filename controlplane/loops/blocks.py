"""Address blocks of nodes: claimed with a node's first task, released when the node is gone."""

import asyncio
import logging
from collections.abc import Iterable
from ipaddress import IPv4Network

from controlplane.allocator import PoolExhaustedError, claim_block
from controlplane.loops.fenced import OWN_CONDITIONS, FencedStore
from controlplane.loops.settings import NetworkSettings
from controlplane.store import codec, keys
from controlplane.store.cache import Cache
from controlplane.store.protocol import MAX_TXN_OPS, Delete, Put, Unchanged
from estiba.model import NodeId
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

MOST_IN_TRANSACTION = MAX_TXN_OPS - OWN_CONDITIONS


class Blocks:
    def __init__(self, store: FencedStore, cache: Cache, network: NetworkSettings) -> None:
        self._store = store
        self._cache = cache
        self._network = network

    def held(self, node_id: NodeId) -> Unchanged | None:
        """Return the condition that the node still has its block; None: it has none."""
        if (self._network.id, node_id) not in self._cache.blocks:
            return None
        key = keys.block(self._network.id, node_id)
        return Unchanged(key, self._cache.key_revision(key))

    async def claim(self, node_ids: Iterable[NodeId], *, within_s: float) -> str:
        """Give a block to each node that has none, as far as there are any.

        Returns:
            "", or why some got none, in one sentence.
        """
        needed = sorted({node_id for node_id in node_ids if self.held(node_id) is None})
        if not needed:
            return ""
        taken = [
            IPv4Network(block.cidr)
            for (network_id, _), block in self._cache.blocks.items()
            if network_id == self._network.id
        ]
        puts: list[Put] = []
        shortage = ""
        for node_id in needed:
            # To find a free one takes a look at all that are taken.
            await asyncio.sleep(0)
            try:
                cidr = claim_block(self._network.cidr, taken, prefix=self._network.block_prefix)
            except PoolExhaustedError as error:
                shortage = f"no addresses left in network {self._network.name}: {error}"
                break
            taken.append(cidr)
            block = v1.NodeBlock(network_id=self._network.id, node_id=node_id, cidr=str(cidr))
            puts.append(Put(keys.block(self._network.id, node_id), codec.encode(block)))
        revision = 0
        for start in range(0, len(puts), MOST_IN_TRANSACTION):
            part = puts[start : start + MOST_IN_TRANSACTION]
            revision = await self._store.commit([Unchanged(put.key, 0) for put in part], part)
        await self._cache.wait_for(revision, timeout_s=within_s)
        return shortage

    async def release(self, gone: set[NodeId], *, within_s: float) -> None:
        """Free the blocks of nodes that are gone and have no task; drop those from the set."""
        for node_id in sorted(gone):
            if self._cache.tasks_on(node_id):
                continue
            held = self.held(node_id)
            if held is not None and node_id not in self._cache.nodes:
                revision = await self._store.commit([held], [Delete(held.key)])
                await self._cache.wait_for(revision, timeout_s=within_s)
                log.info("the addresses of node %s are free again", node_id)
            gone.discard(node_id)
