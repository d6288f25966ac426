"""One cluster of three nodes for the whole layer, and a look at the machine before and after."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dev import DevCluster
from tests.support.footprint import Footprint


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
    """Name a service for this test alone, and remove it afterwards."""
    name = request.node.name.split("[")[0].removeprefix("test_").replace("_", "-")[:40].strip("-")
    yield name
    said = cluster.run("service", "rm", name)
    assert said.code == 0 or "no service" in said.err.lower(), said.err
