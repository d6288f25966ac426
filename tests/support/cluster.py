"""A control plane in one process: several members on one store, with simulated agents.

Everything goes wrong that a seed asks for: members die or lose the store, writes get no
answer and happen later or never, watches break, nodes are cut off, agents restart.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from prometheus_client import CollectorRegistry

from controlplane.api.access import CALLER
from controlplane.api.nodes import Nodes
from controlplane.api.services import Services
from controlplane.api.sessions import Sessions
from controlplane.api.streams import Frames, Streams
from controlplane.api.usage import UsageReader
from controlplane.api.writing import Writer
from controlplane.errors import (
    EstibaError,
    OutcomeUnknownError,
    UnavailableError,
    UnreachableError,
)
from controlplane.loops.instruments import Instruments
from controlplane.loops.settings import NetworkSettings, Timing
from controlplane.member import Member, Surroundings
from controlplane.store import keys
from controlplane.store.lease import LeaseKeeper
from controlplane.store.memory import MemoryStore
from controlplane.store.mirror import CacheChange, Mirror
from controlplane.store.protocol import Batch, Condition, Entry, Fence, Page, Write
from estiba import wire
from estiba.kit.clock import LoopClock
from estiba.kit.tls import Identity, Role
from estiba.model import Task
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from tests.support.agents import SimulatedAgent

RECONCILED = "estiba_reconciled_services_total"
CALLER_IN_TESTS = Identity(Role.USER, "test")


@dataclass(slots=True)
class Chances:
    """How likely each operation of a member on the store goes wrong."""

    unanswered: float = 0.0
    """A write gets no answer; it happens at once, later, or never."""
    unavailable: float = 0.0
    cut: float = 0.0
    """A watch breaks."""


class FaultyStore:
    """The store as one member reaches it."""

    def __init__(
        self, inner: MemoryStore, member_id: str, *, rng: random.Random, chances: Chances
    ) -> None:
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._inner = inner
        self._member_id = member_id
        self._rng = rng
        self._chances = chances
        self._strays: set[asyncio.Task[None]] = set()

    @property
    def reachable(self) -> bool:
        return self._reachable.is_set()

    def lose(self) -> None:
        """Nothing reaches the store until `find`; what it has delivered stands."""
        self._reachable.clear()

    def find(self) -> None:
        self._reachable.set()

    async def get(self, key: str) -> Entry | None:
        await self._reach()
        return await self._inner.get(key)

    async def list(self, prefix: str, *, start: str = "", limit: int = 1000, at: int = 0) -> Page:
        await self._reach()
        return await self._inner.list(prefix, start=start, limit=limit, at=at)

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        await self._reach()
        if self._rng.random() < self._chances.unanswered:
            fate = self._rng.choice(("at once", "later", "never"))
            if fate == "at once":
                await self._commit(conditions, writes)
            elif fate == "later":
                stray = asyncio.create_task(self._stray(conditions, writes), name="stray")
                self._strays.add(stray)
                stray.add_done_callback(self._strays.discard)
            raise OutcomeUnknownError("no answer")
        return await self._commit(conditions, writes)

    async def _commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        revision = await self._inner.commit(conditions, writes)
        if any(isinstance(condition, Fence) for condition in conditions):
            leader = await self._inner.get(keys.LEADER)
            resigned = any(write.key == keys.LEADER for write in writes)
            assert resigned or (leader and leader.value.decode() == self._member_id), (
                f"{self._member_id} wrote at {revision}, and does not lead"
            )
        return revision

    async def _stray(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> None:
        await asyncio.sleep(self._rng.random() * 8.0)
        with suppress(EstibaError):
            await self._inner.commit(conditions, writes)

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        """Resume after what was delivered, as often as the connection breaks."""
        while True:
            async with aclosing(self._inner.watch(prefix, after=after)) as batches:
                async for batch in batches:
                    await self._reachable.wait()
                    await asyncio.sleep(self._rng.random() * 0.02)
                    after = batch.revision
                    yield batch
                    if self._rng.random() < self._chances.cut:
                        break

    async def revision(self) -> int:
        await self._reach()
        return await self._inner.revision()

    async def grant(self, ttl_s: int) -> int:
        await self._reach()
        return await self._inner.grant(ttl_s)

    async def renew(self, lease: int) -> float:
        await self._reach()
        return await self._inner.renew(lease)

    async def revoke(self, lease: int) -> None:
        await self._reach()
        await self._inner.revoke(lease)

    async def _reach(self) -> None:
        await asyncio.sleep(self._rng.random() * 0.005)
        if not self.reachable or self._rng.random() < self._chances.unavailable:
            raise UnavailableError("the store does not answer")


class SimulatedMember:
    """One estibad: started, killed, started again with nothing remembered."""

    def __init__(
        self,
        name: str,
        inner: MemoryStore,
        *,
        rng: random.Random,
        chances: Chances,
        network: NetworkSettings,
    ) -> None:
        self.name = name
        self._network = network
        self.registry = CollectorRegistry()
        self.instruments = Instruments(self.registry)
        self._inner = inner
        self._rng = rng
        self._chances = chances
        self._running: asyncio.Task[None] | None = None
        self.store: FaultyStore | None = None
        self.member: Member | None = None

    @property
    def ready(self) -> Member | None:
        return self.member if self.member and self.member.cache.ready.is_set() else None

    def start(self) -> None:
        clock = LoopClock()
        self.store = FaultyStore(self._inner, self.name, rng=self._rng, chances=self._chances)
        around = Surroundings(
            store=self.store,
            clock=clock,
            keeper=LeaseKeeper(self.store, clock=clock),
            new_id=lambda: f"{self._rng.getrandbits(64):016x}",
            random=self._rng.random,
        )
        self.member = Member(
            around,
            registration=v1.Member(id=self.name, address=f"{self.name}:7443"),
            cluster_name="simulated",
            network=self._network,
            timing=Timing(),
            instruments=self.instruments,
        )
        self._running = asyncio.create_task(self.member.run(), name=self.name)

    async def kill(self) -> None:
        """Stop it as SIGKILL does: its leases and its keys stay until they end."""
        if self.store is not None:
            self.store.lose()
        await self.stop()

    async def stop(self) -> None:
        """Stop it as SIGTERM does."""
        running, self._running = self._running, None
        member, self.member = self.member, None
        if running is None or member is None or self.store is None:
            return
        running.cancel()
        await asyncio.wait([running])
        # Its connections end with it, and whoever still waits in it can write nothing.
        member.sessions.let_go()
        self.store.lose()
        if not running.cancelled():
            running.result()

    async def without_store(self, duration_s: float) -> None:
        """Cut the member off from the store for a while."""
        store = self.store
        if store is not None:
            store.lose()
            await asyncio.sleep(duration_s)
            store.find()

    def check(self) -> None:
        """Raise what has ended the member, if anything has."""
        if self._running is not None and self._running.done():
            self._running.result()


class Invariants:
    """Sees every revision of the store, and what must hold in each."""

    def __init__(self, store: MemoryStore, capacities: Mapping[str, v1.NodeDescription]) -> None:
        self.placements = 0
        self.mirror = Mirror()
        self._store = store
        self._capacities = capacities
        self._tasks: dict[str, Task] = {}
        self._wanted: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        self._reserved: Counter[str] = Counter()

    async def run(self) -> None:
        async with aclosing(self._store.watch(keys.ROOT, after=0)) as batches:
            async for batch in batches:
                for revision, events in groupby(batch.events, key=attrgetter("revision")):
                    tasks = [
                        change
                        for change in self.mirror.apply(events, now_s=0.0)
                        if change.kind == "task"
                    ]
                    for change in tasks:
                        self._count(change)
                    for change in tasks:
                        self._check(change.id, revision)

    def _count(self, change: CacheChange) -> None:
        before = self._tasks.pop(change.id, None)
        if before is not None:
            self._wanted[before.service_id, before.slot].discard(before.id)
            if before.node_id and before.holds_resources:
                self._reserved[before.node_id] -= before.reservations.memory_bytes
        if not isinstance(change.after, v1.Task):
            return
        task = self._tasks[change.id] = wire.task(change.after)
        self.placements += bool(task.node_id and not (before and before.node_id))
        if task.wanted:
            self._wanted[task.service_id, task.slot].add(task.id)
        if task.node_id and task.holds_resources:
            self._reserved[task.node_id] += task.reservations.memory_bytes

    def _check(self, task_id: str, revision: int) -> None:
        task = self._tasks.get(task_id)
        if task is None:
            return
        wanted = self._wanted[task.service_id, task.slot]
        assert len(wanted) <= 1, f"revision {revision}: a slot has two wanted tasks: {wanted}"
        if task.node_id and task.node_id in self._capacities:
            reserved = self._reserved[task.node_id]
            capacity = self._capacities[task.node_id].memory_bytes
            assert reserved <= capacity, f"revision {revision}: {task.node_id} is over its capacity"


class NoPeers:
    """Members that do not reach each other."""

    @asynccontextmanager
    async def open(
        self, member: v1.Member, node_id: str, purpose: dispatch.Purpose
    ) -> AsyncIterator[Frames]:
        raise UnreachableError(f"member {member.id} does not answer")
        yield


class World:
    """Members, agents and a user, in the running loop's virtual time."""

    def __init__(
        self,
        seed: int,
        *,
        members: int = 2,
        agents: int = 4,
        network: NetworkSettings | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.chances = Chances()
        self.store = MemoryStore()
        self.clock = LoopClock()
        self.members = [
            SimulatedMember(
                f"m{number}",
                self.store,
                rng=self.rng,
                chances=self.chances,
                network=network or NetworkSettings(),
            )
            for number in range(1, members + 1)
        ]
        self.agents = [
            SimulatedAgent(f"n{number}", self._reachable, clock=self.clock, rng=self.rng)
            for number in range(1, agents + 1)
        ]
        self.invariants = Invariants(
            self.store, {agent.node_id: agent.description for agent in self.agents}
        )
        self._running: dict[str, asyncio.Task[None]] = {}
        CALLER.set(CALLER_IN_TESTS)

    def _reachable(self) -> list[Sessions]:
        return [each.ready.sessions for each in self.members if each.ready]

    def start(self) -> None:
        self._running["invariants"] = asyncio.create_task(self.invariants.run())
        for member in self.members:
            member.start()
        for agent in self.agents:
            self.start_agent(agent)

    def start_agent(self, agent: SimulatedAgent) -> None:
        self._running[agent.node_id] = asyncio.create_task(agent.run(), name=agent.node_id)

    async def stop_agent(self, agent: SimulatedAgent) -> None:
        running = self._running.pop(agent.node_id)
        running.cancel()
        await asyncio.wait([running])
        if not running.cancelled():
            running.result()

    async def stop(self) -> None:
        for member in self.members:
            await member.stop()
        for running in self._running.values():
            running.cancel()
        await asyncio.wait(self._running.values())
        self.check()

    def check(self) -> None:
        """Raise what has gone wrong so far."""
        for member in self.members:
            member.check()
        for running in self._running.values():
            if running.done() and not running.cancelled():
                running.result()

    async def until_ready(self) -> None:
        """Return when every node is ready, and somebody leads."""
        nodes = self.invariants.mirror.nodes

        def ready() -> bool:
            states = [node.status.state for node in nodes.values()]
            return states == [v1.NODE_STATE_READY] * len(self.agents) and self._led()

        await self.until(ready)

    async def until(self, look: Callable[[], bool], *, within_s: float = 30.0) -> None:
        """Return when it is so."""
        async with asyncio.timeout(within_s):
            while not look():
                self.check()
                await asyncio.sleep(0.05)

    def _led(self) -> bool:
        return any(each.ready.leads for each in self.members if each.ready)

    # ------------------------------------------------------------------ a user

    async def user(self, call: Callable[[Services, Nodes], Awaitable[object]]) -> None:
        """Make a call at a member that answers, and again until one has answered it."""
        while True:
            ready = [each for each in self.members if each.ready]
            if ready:
                chosen = self.rng.choice(ready)
                if chosen.store is not None and chosen.member is not None:
                    services, nodes = self._rooms(chosen.store, chosen.member)
                    try:
                        await call(services, nodes)
                    except (UnavailableError, OutcomeUnknownError):
                        pass
                    else:
                        return
            self.check()
            await asyncio.sleep(0.2)

    def _rooms(self, store: FaultyStore, member: Member) -> tuple[Services, Nodes]:
        writer = Writer(store, member.cache, self.clock)
        streams = Streams(
            sessions=member.sessions,
            cache=member.cache,
            peers=NoPeers(),
            member_id="",
            timing=Timing(),
            new_id=lambda: "stream",
        )
        services = Services(writer, self.clock, lambda: f"s{self.rng.getrandbits(32):08x}")
        return services, Nodes(writer, UsageReader(streams, member.cache))

    # ------------------------------------------------------------------ what is observed

    def wanted(self) -> dict[str, int]:
        """Return how many replicas each stored service wants."""
        services = self.invariants.mirror.services.values()
        return {each.metadata.name: each.spec.replicated.replicas for each in services}

    def running(self) -> Counter[str]:
        """Return how many containers of each service run on all nodes together."""
        found: Counter[str] = Counter()
        for agent in self.agents:
            for task_id in agent.running():
                found[agent.tasks[task_id].assignment.service_name] += 1
        return found

    def reconciled(self) -> float:
        """Return how many times a service has been looked at and decided on."""
        return sum(each.registry.get_sample_value(RECONCILED) or 0.0 for each in self.members)

    def converged(self) -> bool:
        running = self.running()
        wanted = {name: replicas for name, replicas in self.wanted().items() if replicas}
        return dict(running) == wanted and not self._outdated()

    def _outdated(self) -> bool:
        services = self.invariants.mirror.services
        for agent in self.agents:
            for task_id in agent.running():
                assignment = agent.tasks[task_id].assignment
                service = services.get(assignment.service_id)
                if service is None or (
                    service.template_generation != assignment.template_generation
                ):
                    return True
        return False

    async def until_converged(self, *, within_s: float) -> float:
        """Return how long it took until what runs is what is wanted."""
        begun = self.clock.monotonic()
        while not self.converged():
            self.check()
            waited = self.clock.monotonic() - begun
            assert waited < within_s, (
                f"after {waited:.0f} s {dict(self.running())} run, {self.wanted()} are wanted"
            )
            await asyncio.sleep(0.1)
        return self.clock.monotonic() - begun
