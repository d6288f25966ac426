"""A storm: programs and containers killed, frozen and cut off, while people change things.

When it is over everything is as it was declared, and nothing else is there. The seed is
that of ESTIBA_STORM_SEED, else the same each time; a failure tells it and what happened.
"""

import os
from collections.abc import Iterator

import pytest

from tests.support import calm
from tests.support.dev import DevCluster
from tests.support.storm import SERVICES, Storm
from tests.support.waiting import eventually

SEED = int(os.environ.get("ESTIBA_STORM_SEED", "20261124"))
STORM_S = 35.0
LONGEST_FAULT_S = 6.0
# An update replaces one replica at a time.
CALM_WITHIN_S = 60.0
BUSY = 0.1
"""The share of a processor that an idle program stays below."""


@pytest.fixture
def services(cluster: DevCluster) -> Iterator[None]:
    yield
    for name in SERVICES:
        said = cluster.run("service", "rm", name)
        assert said.code == 0 or "no service" in said.err, said.err


def declared(cluster: DevCluster) -> dict[str, int]:
    found = cluster.json("service", "ls")
    return {
        each["metadata"]["name"]: int(each["spec"]["replicated"].get("replicas", 0))
        for each in found
    }


@pytest.mark.usefixtures("services")
def test_after_a_storm_all_is_as_declared_and_nothing_else_is_there(cluster: DevCluster) -> None:
    assert declared(cluster) == {}
    shameful = set(calm.shame(cluster))
    storm = Storm(cluster, SEED, longest_fault_s=LONGEST_FAULT_S)
    try:
        storm.blow(for_s=STORM_S)
        eventually(
            lambda: calm.faults(cluster, declared(cluster)) + calm.strays(cluster) == [],
            within_s=CALM_WITHIN_S,
            what="everything is as declared",
            every_s=1.0,
        )
        _look_closely(cluster, storm, shameful)
    except BaseException as failure:
        failure.add_note(storm.told())
        failure.add_note("\n".join(calm.faults(cluster, declared(cluster))))
        raise


def _look_closely(cluster: DevCluster, storm: Storm, shameful: set[str]) -> None:
    """Check what needs no waiting for: wishes kept, logs clean, nobody busy, no line lost."""
    replicas = declared(cluster)
    for name, allowed in storm.allowed.items():
        assert replicas.get(name, 0) in allowed, f"a wish for {name} was lost"
    assert [line for line in calm.shame(cluster) if line not in shameful] == []
    assert {name: share for name, share in calm.busy(cluster).items() if share > BUSY} == {}
    assert calm.gaps(cluster) == []
    assert not [path for path in (cluster.folder / "nodes").rglob("*.tmp") if path.is_file()]
