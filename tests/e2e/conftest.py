"""One cluster of three nodes for the whole layer, and a look at the machine before and after."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dev import DevCluster
from tests.support.footprint import Footprint
from tests.support.waiting import eventually


@pytest.fixture(scope="session")
def cluster() -> Iterator[DevCluster]:
    """Start a cluster with the sample image in its registry; leave the machine as it was."""
    before = Footprint.take()
    with tempfile.TemporaryDirectory(prefix="estiba-e2e-") as folder:
        cluster = DevCluster(Path(folder) / "dev")
        try:
            cluster.up()
            push_sample(cluster)
            yield cluster
        finally:
            cluster.down()
    left = before.left_behind()
    assert not left, f"left on the machine: {left}"


@pytest.fixture
def second() -> Iterator[DevCluster]:
    """A cluster that is not up yet, beside the one of the whole layer."""
    with tempfile.TemporaryDirectory(prefix="estiba-dev-up-") as folder:
        cluster = DevCluster(Path(folder) / "dev")
        yield cluster
        cluster.down()


def push_sample(cluster: DevCluster, name: str = "hello") -> None:
    described = cluster.described
    subprocess.run(
        [
            *(sys.executable, "-m", "controlplane.cli.dev.sample"),
            *("--registry", described["registry"], "--ca", described["tls"]["ca"]),
            *("--name", name),
        ],
        check=True,
        timeout=60,
    )


@pytest.fixture
def service(cluster: DevCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name a service for this test alone, and leave nothing of it afterwards."""
    name = request.node.name.split("[")[0].removeprefix("test_").replace("_", "-")[:40].strip("-")
    yield name
    found = cluster.run("service", "inspect", name)
    said = cluster.run("service", "rm", name)
    assert said.code == 0 or "no service" in said.err.lower(), said.err
    if found.code == 0:
        service_id = json.loads(found.out)[0]["metadata"]["id"]
        # The next test may count containers.
        eventually(
            lambda: cluster.containers_of(service_id) == 0,
            within_s=20,
            what=f"nothing of {name} runs any more",
        )
