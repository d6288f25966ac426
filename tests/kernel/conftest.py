"""A node for each test, and one layer for all of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.containers import Node, cgroup_folders, make_layer, running_node


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layer(tmp_path_factory.mktemp("image") / "layer")


@pytest.fixture
async def node(tmp_path: Path, layer: Path) -> AsyncIterator[Node]:
    async with running_node(tmp_path, layer) as node:
        yield node
    assert cgroup_folders(node.cgroup_parent) == []
