"""The whole control plane under a virtual clock: what is declared becomes real, whatever fails.

Each seed is one history of faults and of users' wishes. A failure names its seed: run it
alone with ``-k "[7]"``. Checked in every revision of the store: no slot has two wanted
tasks, no node is over its capacity, and nobody writes as leader who is not.
"""

import asyncio
import random

import pytest

from estiba.v1 import types_pb2 as v1
from tests.support import virtual_time
from tests.support.cluster import World
from tests.support.declaring import availability, create, delete, scale, update

SEEDS = range(60)


def test_a_declared_service_runs_within_a_second() -> None:
    async def story() -> None:
        world = World(seed=1)
        world.start()
        await world.until_ready()
        await world.user(create("web", replicas=3))
        assert await world.until_converged(within_s=10) < 1.0
        await world.stop()

    virtual_time.run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_declared_runs_in_the_end(seed: int) -> None:
    async def story() -> None:
        world = World(seed)
        world.start()
        await world.user(create("web", replicas=3))
        await world.until_converged(within_s=30)
        world.chances.unanswered = 0.05
        world.chances.unavailable = 0.03
        world.chances.cut = 0.05
        async with asyncio.TaskGroup() as group:
            group.create_task(break_things(world))
            group.create_task(wish(world))
        world.chances.unanswered = world.chances.unavailable = world.chances.cut = 0.0
        await world.until_converged(within_s=60)
        # Nothing moves any more, though everything is looked at again.
        placements = world.invariants.placements
        await asyncio.sleep(90)
        assert world.converged()
        assert world.invariants.placements == placements
        await world.stop()

    virtual_time.run(story())


async def wish(world: World) -> None:
    """A user who changes her mind."""
    rng = random.Random(world.rng.random())
    await world.user(create("api", replicas=4))
    for _ in range(8):
        await asyncio.sleep(rng.random() * 6)
        name = rng.choice(["web", "api"])
        replicas = rng.randint(0, 8)
        match rng.choice(["scale", "update", "drain", "again"]):
            case "scale":
                await world.user(scale(name, replicas))
            case "update":
                await world.user(update(name, replicas=replicas, image=f"image:{rng.random()}"))
            case "drain":
                node = rng.choice(world.agents).node_id
                await world.user(availability(node, v1.AVAILABILITY_DRAIN))
                await asyncio.sleep(rng.random() * 10)
                await world.user(availability(node, v1.AVAILABILITY_ACTIVE))
            case "again":
                id_ = f"brief-{rng.getrandbits(32)}"
                await world.user(create("brief", id_=id_, replicas=replicas))
                await asyncio.sleep(rng.random() * 3)
                await world.user(delete("brief"))


async def break_things(world: World) -> None:
    """One fault after the other, each healed before the next begins, or a little later."""
    rng = random.Random(world.rng.random())
    for _ in range(8):
        await asyncio.sleep(rng.random() * 4)
        match rng.choice(["kill", "stop", "lose", "cut", "restart"]):
            case "kill":
                member = rng.choice(world.members)
                await member.kill()
                await asyncio.sleep(rng.random() * 8)
                member.start()
            case "stop":
                member = rng.choice(world.members)
                await member.stop()
                await asyncio.sleep(rng.random() * 3)
                member.start()
            case "lose":
                member = rng.choice(world.members)
                await member.without_store(rng.random() * 12)
            case "cut":
                agent = rng.choice(world.agents)
                agent.connected.clear()
                await asyncio.sleep(rng.random() * 15)
                agent.connected.set()
            case "restart":
                agent = rng.choice(world.agents)
                await world.stop_agent(agent)
                await asyncio.sleep(rng.random() * 2)
                world.start_agent(agent)
