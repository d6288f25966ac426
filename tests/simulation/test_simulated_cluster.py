"""The whole control plane under a virtual clock: what is declared becomes real, whatever fails."""

from tests.support import virtual_time
from tests.support.cluster import World
from tests.support.declaring import create, delete, scale, update


def test_a_declared_service_runs() -> None:
    async def story() -> None:
        world = World(seed=1)
        world.start()
        await world.user(create("web", replicas=3))
        took_s = await world.until_converged(within_s=10)
        assert took_s < 2.0
        await world.stop()

    virtual_time.run(story())
