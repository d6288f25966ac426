"""A node for each test, as new, and one layer for all of them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.containers import Node, StandingNode, cgroup_folders, make_layer


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layer(tmp_path_factory.mktemp("image") / "layer")


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory, layer: Path) -> Iterator[StandingNode]:
    standing = StandingNode(lambda: tmp_path_factory.mktemp("node"), layer)
    yield standing
    standing.stop()


@pytest.fixture
async def node(standing: StandingNode) -> AsyncIterator[Node]:
    async with standing.lent() as node:
        yield node
    assert cgroup_folders(node.cgroup_parent) == []
