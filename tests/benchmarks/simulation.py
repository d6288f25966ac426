"""How fast the whole control plane runs on the store in memory, under a virtual clock.

A change of a service goes from the user's call through planner and store to the node's
assignment, and its reports come back; it takes several reconciliations, of which each looks at
one service and decides what to do about it. A history is one seed of tests/simulation: a minute
or two of virtual time full of faults.
"""

import asyncio
import logging
import time

from tests.simulation.test_simulated_cluster import test_what_is_declared_runs_in_the_end as history
from tests.support import virtual_time
from tests.support.benchmark import Figure, tell
from tests.support.cluster import World
from tests.support.declaring import create, scale

SERVICES = 200
ROUNDS = 5
HISTORIES = 20


async def work() -> tuple[float, float]:
    """Return how many changes, and how many reconciliations, a second of processor time did."""
    world = World(seed=1, agents=8)
    world.start()
    await world.until_ready()
    names = [f"s{number}" for number in range(SERVICES)]
    await asyncio.gather(*(world.user(create(name, replicas=1)) for name in names))
    await world.until_converged(within_s=60)
    reconciled = world.reconciled()
    begun = time.process_time()
    for round_ in range(ROUNDS):
        replicas = 2 - round_ % 2
        await asyncio.gather(*(world.user(scale(name, replicas)) for name in names))
        await world.until_converged(within_s=60)
    took_s = time.process_time() - begun
    reconciled = world.reconciled() - reconciled
    await world.stop()
    return SERVICES * ROUNDS / took_s, reconciled / took_s


def main() -> None:
    logging.disable(logging.CRITICAL)
    changes_per_s, reconciled_per_s = virtual_time.run(work())
    begun = time.process_time()
    for seed in range(HISTORIES):
        history(seed)
    per_minute = 60 * HISTORIES / (time.process_time() - begun)
    tell(
        "simulation",
        [
            Figure("changes of services, from call to running", changes_per_s, "1/s"),
            Figure("reconciliations meanwhile", reconciled_per_s, "1/s"),
            Figure("histories full of faults", per_minute, "1/min"),
        ],
        {},
    )


if __name__ == "__main__":
    main()
