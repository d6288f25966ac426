"""One real etcd for all integration tests; each uses keys of its own, or wipes them first."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from controlplane.store.etcd import EtcdStore
from tests.support.etcd import Etcd, prepare_etcd
from tests.support.store import wipe


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    server = prepare_etcd(tmp_path_factory.mktemp("etcd"))
    try:
        asyncio.run(server.start())
        yield server
    finally:
        asyncio.run(server.stop())


@pytest.fixture
async def etcd_store(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    """A store without keys."""
    store = etcd.store()
    await wipe(store)
    yield store
    await store.close()
