"""Makes the object of a node that comes for the first time, under a name that is free."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.errors import ConflictError, DeniedError
from controlplane.store import codec, keys
from controlplane.store.cache import Cache
from controlplane.store.protocol import Condition, Put, Store, Unchanged, Write
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
        for name in names(node_id, hostname):
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
        node = new_node(node_id, name, now_s=self._clock.now(), by=f"node:{node_id}")
        made = creation(node)
        return await self._store.commit(
            [Unchanged(keys.node_removed(node_id), 0), *made.conditions], made.writes
        )


@dataclass(frozen=True, slots=True)
class Creation:
    conditions: Sequence[Condition]
    writes: Sequence[Write]


def names(node_id: str, hostname: str) -> tuple[str, ...]:
    """Return what a node may be called, the best first."""
    hostname = hostname or node_id
    return (hostname, f"{hostname}-{node_id[:SUFFIX_LENGTH]}", node_id)


def new_node(node_id: str, name: str, *, now_s: float, by: str) -> v1.Node:
    now = wire.timestamp(now_s)
    return v1.Node(
        metadata=v1.Metadata(
            id=node_id,
            namespace=DEFAULT_NAMESPACE,
            name=name,
            generation=1,
            created_at=now,
            changed_at=now,
            changed_by=by,
        ),
        spec=v1.NodeSpec(availability=v1.AVAILABILITY_ACTIVE),
    )


def creation(node: v1.Node) -> Creation:
    """Return what stores a node, unless there is one of its id or its name."""
    key, name_key = keys.node(node.metadata.id), keys.node_name(node.metadata.name)
    return Creation(
        [Unchanged(key, 0), Unchanged(name_key, 0)],
        [Put(key, codec.encode(node)), Put(name_key, node.metadata.id.encode())],
    )


def removed(node_id: str) -> DeniedError:
    return DeniedError(f"node {node_id} was removed from the cluster")
