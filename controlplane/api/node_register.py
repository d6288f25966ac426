"""Makes the object of a node whose agent comes for the first time, under a name that is free."""

import logging

from controlplane.errors import ConflictError, DeniedError
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.protocol import Put, Store, Unchanged
from estiba import wire
from estiba.kit.clock import Clock
from estiba.model import DEFAULT_NAMESPACE
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

# As much of the node's id as tells two nodes of one host name apart.
SUFFIX_LENGTH = 8


class NodeRegister:
    def __init__(self, store: Store, cache: Cache, clock: Clock) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock

    async def ensure(self, node_id: str, hostname: str, *, within_s: float) -> v1.Node:
        """Return the node, made if absent; the view contains it then.

        Raises:
            DeniedError: an operator has removed it for good.
            StoreError: the store does not answer.
        """
        hostname = hostname or node_id
        for name in (hostname, f"{hostname}-{node_id[:SUFFIX_LENGTH]}", node_id):
            if node_id in self._cache.removed_nodes:
                raise removed(node_id)
            if node_id in self._cache.nodes:
                break
            try:
                revision = await self._create(node_id, name)
            except ConflictError as taken:
                log.info("node %s cannot be named %s: %s", node_id, name, taken)
                await self._cache.catch_up()
            else:
                log.info("node %s is registered as %s", node_id, name)
                await self._cache.wait_for(revision, timeout_s=within_s)
        try:
            return self._cache.nodes[node_id]
        except KeyError:
            raise removed(node_id) from None

    async def claim(self, node_id: str, presence: bytes, lease: int, status: v1.NodeStatus) -> int:
        """Write a session's presence key and the node's status; return the revision.

        Raises:
            DeniedError: an operator has removed the node for good.
            StoreError: the store does not answer.
        """
        try:
            return await self._store.commit(
                [Unchanged(keys.node_removed(node_id), 0)],
                [
                    Put(keys.presence(node_id), presence, lease),
                    Put(keys.node_status(node_id), status.SerializeToString(deterministic=True)),
                ],
            )
        except ConflictError:
            raise removed(node_id) from None

    async def _create(self, node_id: str, name: str) -> int:
        now = wire.timestamp(self._clock.now())
        node = v1.Node(
            metadata=v1.Metadata(
                id=node_id,
                namespace=DEFAULT_NAMESPACE,
                name=name,
                generation=1,
                created_at=now,
                changed_at=now,
                changed_by=f"node:{node_id}",
            ),
            spec=v1.NodeSpec(availability=v1.AVAILABILITY_ACTIVE),
        )
        return await self._store.commit(
            [
                Unchanged(keys.node_removed(node_id), 0),
                Unchanged(keys.node(node_id), 0),
                Unchanged(keys.node_name(name), 0),
            ],
            [
                Put(keys.node(node_id), node.SerializeToString(deterministic=True)),
                Put(keys.node_name(name), node_id.encode()),
            ],
        )


def removed(node_id: str) -> DeniedError:
    return DeniedError(f"node {node_id} was removed from the cluster")
