"""A scripted member of the control plane, and a node that knows its address."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.agent_node import Node
from tests.support.certificates import Certificates, issue
from tests.support.dispatcher import Dispatcher


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def member(certificates: Certificates) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher()
    await dispatcher.start(certificates.of("estibad-1"))
    yield dispatcher
    await dispatcher.stop()


@pytest.fixture
async def node(tmp_path: Path, certificates: Certificates) -> Node:
    return Node(tmp_path, certificates)
