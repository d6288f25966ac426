"""One member of the control plane without its listening sockets: view, sessions, loops.

`controlplane.program` puts gRPC and HTTP around it; the simulation runs several of them in one
process, under a virtual clock.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.api.assignments import AssignmentBuilder
from controlplane.api.node_register import NodeRegister
from controlplane.api.presence_writer import PresenceWriter
from controlplane.api.sessions import Sessions
from controlplane.errors import ConflictError, OutcomeUnknownError, UnavailableError
from controlplane.loops.instruments import Instruments
from controlplane.loops.planner import Planner
from controlplane.loops.settings import NetworkSettings, Timing
from controlplane.store import codec, keys
from controlplane.store.cache import Cache
from controlplane.store.election import Election, keep_registered
from controlplane.store.lease import LeaseKeeper
from controlplane.store.protocol import Fence, Put, Store, Unchanged
from estiba import wire
from estiba.kit.backoff import Backoff
from estiba.kit.clock import Clock
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

RETRY_DELAY_S = 0.5


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a member is given: the store, and sources of time and chance."""

    store: Store
    clock: Clock
    keeper: LeaseKeeper
    new_id: Callable[[], str]
    random: Callable[[], float]
    """Floats in [0, 1)."""


class Member:
    def __init__(
        self,
        around: Surroundings,
        *,
        registration: v1.Member,
        cluster_name: str,
        network: NetworkSettings,
        timing: Timing,
        instruments: Instruments,
    ) -> None:
        self._around = around
        self._registration = registration
        self._cluster_name = cluster_name
        self._network = network
        self._timing = timing
        self._instruments = instruments
        self.cache = Cache(around.store, clock=around.clock)
        self.sessions = Sessions(
            cache=self.cache,
            register=NodeRegister(around.store, self.cache, around.clock),
            writer=PresenceWriter(
                around.store,
                around.clock,
                Backoff(first_s=0.1, most_s=2.0, random=around.random),
                flush_after_s=timing.flush_after_s,
            ),
            builder=AssignmentBuilder(self.cache, network),
            membership=around.keeper,
            member_id=registration.id,
            clock=around.clock,
            timing=timing,
            instruments=instruments,
            new_id=around.new_id,
        )
        self._election = Election(
            around.store, around.keeper, member_id=registration.id, clock=around.clock
        )

    @property
    def leads(self) -> bool:
        return self._election.fence is not None

    async def run(self) -> None:
        """Take part in the control plane until cancelled; lose a lease, and go on with the next."""
        around = self._around
        await self._make_cluster()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.cache.run(), name="cache")
            group.create_task(around.keeper.run(), name="lease")
            group.create_task(self._let_go_when_lost(), name="lease.lost")
            group.create_task(self.sessions.run(), name="sessions")
            group.create_task(
                keep_registered(
                    around.store, around.keeper, self._registration, clock=around.clock
                ),
                name="registration",
            )
            await self.cache.ready.wait()
            # Sessions and terms of office need what has been listed.
            group.create_task(self._election.run(self._lead), name="election")

    async def _make_cluster(self) -> None:
        """Store the one object that says which cluster this is, unless it is there."""
        cluster = v1.Cluster(
            id=self._around.new_id(),
            name=self._cluster_name,
            epoch=1,
            created_at=wire.timestamp(self._around.clock.now()),
        )
        while True:
            try:
                await self._around.store.commit(
                    [Unchanged(keys.CLUSTER, 0)], [Put(keys.CLUSTER, codec.encode(cluster))]
                )
            except ConflictError:
                return
            except (UnavailableError, OutcomeUnknownError) as error:
                log.warning("waiting for the store: %s", error)
                await self._around.clock.sleep(RETRY_DELAY_S)
            else:
                log.info("cluster %s begins, id %s", cluster.name, cluster.id)
                return

    async def _let_go_when_lost(self) -> None:
        while True:
            lease = await self._around.keeper.acquired()
            await lease.lost.wait()
            self.sessions.let_go()

    async def _lead(self, fence: Fence) -> None:
        """Run the loops for one term of office."""
        planner = Planner(
            self._around.store,
            self.cache,
            fence=fence,
            clock=self._around.clock,
            backoff=Backoff(first_s=0.1, most_s=2.0, random=self._around.random),
            network=self._network,
            timing=self._timing,
            instruments=self._instruments,
        )
        self._instruments.leader.set(1)
        try:
            await planner.run()
        finally:
            self._instruments.leader.set(0)
