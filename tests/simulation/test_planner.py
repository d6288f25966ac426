"""What the planner does in situations that are told one by one, in virtual time."""

import asyncio
from collections.abc import Coroutine, Sequence
from ipaddress import IPv4Network
from typing import Any

import pytest

from controlplane.errors import (
    ConflictError,
    DeposedError,
    OutcomeUnknownError,
    PreconditionError,
)
from controlplane.loops.fenced import FencedStore
from controlplane.loops.settings import NetworkSettings
from controlplane.store import keys
from controlplane.store.memory import MemoryStore
from controlplane.store.protocol import Condition, Fence, Put, Unchanged, Write
from estiba.v1 import control_pb2 as control
from estiba.v1 import types_pb2 as v1
from tests.support import virtual_time
from tests.support.cluster import World
from tests.support.declaring import availability, create, delete, update

# ------------------------------------------------------------------ fencing


class LateStore(MemoryStore):
    """Keeps writes back when told to, as a network does that loses only the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = False
        self.held: list[tuple[Sequence[Condition], Sequence[Write]]] = []

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        if self.holding:
            self.held.append((conditions, writes))
            raise OutcomeUnknownError("no answer")
        return await super().commit(conditions, writes)


async def leading(store: MemoryStore) -> FencedStore:
    revision = await store.commit([Unchanged(keys.LEADER, 0)], [Put(keys.LEADER, b"m1")])
    fenced = FencedStore(store, Fence(revision))
    await fenced.begin()
    return fenced


def told(story: Coroutine[Any, Any, None]) -> None:
    virtual_time.run(story)


def test_a_write_without_answer_cannot_happen_after_it_was_voided() -> None:
    async def story() -> None:
        store = LateStore()
        fenced = await leading(store)
        store.holding = True
        with pytest.raises(OutcomeUnknownError):
            await fenced.commit([Unchanged("/estiba/task/a", 0)], [Put("/estiba/task/a", b"old")])
        store.holding = False

        await fenced.void_unanswered()

        (late,) = store.held
        with pytest.raises(ConflictError):
            await store.commit(*late)
        assert await store.get("/estiba/task/a") is None
        await fenced.commit([Unchanged("/estiba/task/a", 0)], [Put("/estiba/task/a", b"new")])

    told(story())


def test_voiding_may_itself_go_without_answer() -> None:
    async def story() -> None:
        store = LateStore()
        fenced = await leading(store)
        store.holding = True
        with pytest.raises(OutcomeUnknownError):
            await fenced.commit([], [Put("/estiba/task/a", b"old")])
        with pytest.raises(OutcomeUnknownError):
            await fenced.void_unanswered()
        store.holding = False
        # The first attempt to void arrives in the end; the write it was to void comes later.
        write, void = store.held
        await store.commit(*void)

        await fenced.void_unanswered()

        with pytest.raises(ConflictError):
            await store.commit(*write)
        await fenced.commit([], [Put("/estiba/task/a", b"new")])

    told(story())


def test_a_write_prepared_before_the_lease_was_lost_is_refused() -> None:
    async def story() -> None:
        store = MemoryStore()
        fenced = await leading(store)
        await store.commit([], [Put(keys.LEADER, b"m1")])
        await fenced.commit([], [Put("/estiba/task/a", b"")])
        entry = await store.get(keys.LEADER)
        assert entry is not None
        # The key goes with the lease, and another member makes it anew.
        lease = await store.grant(5)
        await store.commit([], [Put(keys.LEADER, b"m1", lease)])
        await store.revoke(lease)
        await store.commit([Unchanged(keys.LEADER, 0)], [Put(keys.LEADER, b"m2")])

        with pytest.raises(DeposedError):
            await fenced.commit([], [Put("/estiba/task/b", b"")])
        with pytest.raises(DeposedError):
            await fenced.void_unanswered()
        assert await store.get("/estiba/task/b") is None

    told(story())


# ------------------------------------------------------------------ nodes


def test_a_node_that_is_down_is_replaced_at_once_and_stops_its_task_when_it_returns() -> None:
    async def story() -> None:
        world = World(seed=3)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=4))
        await world.until_converged(within_s=5)
        lost = world.agents[0]
        lost.connected.clear()
        begun = world.clock.monotonic()
        await world.until(lambda: sum(len(each.running()) for each in world.agents[1:]) == 4)
        assert world.clock.monotonic() - begun < 7.0
        assert len(lost.running()) == 1, "it goes on, unseen"

        lost.connected.set()

        assert await world.until_converged(within_s=10) < 5.0
        assert lost.running() == []
        await world.stop()

    told(story())


def test_an_unknown_node_keeps_its_tasks_until_its_grace_has_passed() -> None:
    async def story() -> None:
        world = World(seed=4, members=2, agents=2)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=2))
        await world.until_converged(within_s=5)
        cut = world.agents[0]
        presence = world.invariants.mirror.presences[cut.node_id]
        (member,) = [each for each in world.members if each.name == presence.member_id]
        cut.connected.clear()
        await member.kill()
        # Its lease has to end first; then the grace begins.
        await asyncio.sleep(5 + 9)
        assert len(world.agents[1].running()) == 1
        await asyncio.sleep(5)
        assert len(world.agents[1].running()) == 2
        await world.stop()

    told(story())


def test_a_member_that_dies_moves_no_task() -> None:
    async def story() -> None:
        world = World(seed=5, members=2, agents=6)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=6))
        await world.until_converged(within_s=5)
        placements = world.invariants.placements
        await world.members[0].kill()
        await asyncio.sleep(60)
        assert world.converged()
        assert world.invariants.placements == placements
        await world.stop()

    told(story())


def test_a_drained_node_is_left_by_one_task_after_the_other() -> None:
    async def story() -> None:
        world = World(seed=6)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=8))
        await world.until_converged(within_s=5)
        await world.user(availability("n1", v1.AVAILABILITY_DRAIN))
        least = 8
        while world.agents[0].running():
            least = min(least, sum(len(each.running()) for each in world.agents))
            await asyncio.sleep(0.02)
        await world.until_converged(within_s=5)
        assert least == 7
        await world.stop()

    told(story())


def test_a_removed_node_is_forgotten_with_its_tasks_and_its_addresses() -> None:
    async def story() -> None:
        world = World(seed=7)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=4))
        await world.until_converged(within_s=5)
        mirror = world.invariants.mirror
        assert ("default", "n1") in mirror.blocks
        request = control.RemoveNodeRequest(node="n1", force=True)

        await world.user(lambda _, nodes: nodes.remove(request))
        await world.until_converged(within_s=5)
        await asyncio.sleep(5)

        assert world.agents[0].refused
        assert "n1" not in mirror.nodes
        assert not [task for task in mirror.tasks.values() if task.node_id == "n1"]
        assert ("default", "n1") not in mirror.blocks
        await world.stop()

    told(story())


# ------------------------------------------------------------------ what is kept


def test_without_addresses_tasks_go_where_there_are_some_or_wait_and_say_why() -> None:
    async def story() -> None:
        # Two blocks, of which the first is no node's.
        network = NetworkSettings(cidr=IPv4Network("10.10.0.0/23"), block_prefix=24)
        world = World(seed=8, agents=2, network=network)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=2))
        await world.until_converged(within_s=5)
        mirror = world.invariants.mirror
        (served,) = {task.node_id for task in mirror.tasks.values()}
        (other,) = {"n1", "n2"} - {served}

        await world.user(create("far", replicas=1, constraints=[f"node.id == {other}"]))
        await asyncio.sleep(2)

        (far,) = [task for task in mirror.tasks.values() if task.service_id == "id-far"]
        assert not far.node_id
        assert far.notes[-1].message == (
            "no addresses left in network default:"
            " all 1 blocks of 10.10.0.0/23 (/24 each) are taken"
        )
        await world.stop()

    told(story())


def test_the_last_ten_templates_are_kept_and_those_of_a_deleted_service_go() -> None:
    async def story() -> None:
        world = World(seed=9)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=2))
        for number in range(15):
            await world.user(update("web", replicas=2, image=f"image:{number}"))
            await world.until_converged(within_s=20)
        # Ended tasks of older templates keep theirs.
        mirror = world.invariants.mirror
        referred = {task.template_generation for task in mirror.tasks.values()}
        kept = {generation for _, generation in mirror.templates}
        assert kept == referred | set(range(7, 17))

        await world.user(delete("web"))
        await asyncio.sleep(60)

        assert not mirror.templates
        assert not mirror.tasks
        assert not any(agent.tasks for agent in world.agents)
        await world.stop()

    told(story())


def test_a_pending_task_is_placed_when_a_node_comes() -> None:
    async def story() -> None:
        world = World(seed=10, agents=1)
        world.start()
        await world.until_ready()
        await world.user(availability("n1", v1.AVAILABILITY_PAUSE))
        await world.user(create("web", replicas=1))
        await asyncio.sleep(1)
        (task,) = world.invariants.mirror.tasks.values()
        assert task.notes[-1].message.startswith("no suitable node")

        await world.user(availability("n1", v1.AVAILABILITY_ACTIVE))
        await world.until_converged(within_s=2)
        await world.stop()

    told(story())


def test_an_id_is_free_again_when_nothing_is_left_of_the_service_that_had_it() -> None:
    async def story() -> None:
        world = World(seed=11)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=2))
        await world.until_converged(within_s=5)
        await world.user(delete("web"))

        with pytest.raises(PreconditionError, match="id-web is still being removed"):
            await world.user(create("web", replicas=2))

        await asyncio.sleep(60)
        await world.user(create("web", replicas=2))
        await world.until_converged(within_s=5)
        await world.stop()

    told(story())
