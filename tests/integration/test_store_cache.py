"""The cache on a real etcd: through cuts and compaction it stays what the store is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from controlplane.store import codec, keys
from controlplane.store.cache import Cache
from controlplane.store.etcd import EtcdStore
from controlplane.store.protocol import Delete, Put, Store, Unchanged
from estiba.kit.clock import SystemClock
from estiba.v1 import types_pb2 as v1
from tests.support.etcd import Etcd
from tests.support.store import everything, proxy_to, put


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[Cache]:
    cache = Cache(store, clock=SystemClock())
    running = asyncio.create_task(cache.run(), name="cache")
    await cache.ready.wait()
    try:
        yield cache
    finally:
        running.cancel()
        await asyncio.wait([running])


def task(number: int, service_id: str) -> Put:
    id_ = f"t{number:05}"
    message = v1.Task(metadata=v1.Metadata(id=id_), service_id=service_id)
    return Put(keys.task(id_), codec.encode(message))


async def test_three_thousand_tasks_are_listed_in_pages_and_followed(
    etcd_store: EtcdStore,
) -> None:
    for first in range(0, 3000, 100):
        await etcd_store.commit([], [task(first + i, "s1") for i in range(100)])
    async with running(etcd_store) as cache:
        assert len(cache.tasks_of("s1")) == 3000
        await etcd_store.commit([], [task(3000, "s1"), Delete(keys.task("t00000"))])
        await cache.catch_up()
        assert len(cache.tasks_of("s1")) == 3000
        assert "t00000" not in cache.tasks


async def test_after_a_compaction_it_lists_again_and_stays_right(
    etcd: Etcd, etcd_store: EtcdStore
) -> None:
    await etcd_store.commit([], [task(number, "s1") for number in range(100)])
    async with proxy_to(etcd.port) as proxy:
        behind_proxy = EtcdStore([proxy.endpoint], tls=None)
        async with running(behind_proxy) as cache:
            after = cache.revision
            proxy.freeze()
            await proxy.cut()
            await etcd_store.commit([], [Delete(keys.task(f"t{n:05}")) for n in range(50)])
            await etcd_store.commit([], [task(number, "s2") for number in range(50, 75)])
            last = await etcd_store.commit([], [task(number, "s3") for number in range(200, 210)])
            await etcd_store.compact(last)
            proxy.thaw()
            await cache.wait_for(last, timeout_s=20)

            stored = await everything(etcd_store, keys.TASKS)
            assert [keys.task(id_) for id_ in sorted(cache.tasks)] == [it.key for it in stored]
            assert {it.key: it.mod_revision for it in stored} == {
                it.key: cache.key_revision(it.key) for it in stored
            }
            assert [len(cache.tasks_of(f"s{n}")) for n in (1, 2, 3)] == [25, 25, 10]
            assert cache.key_revision(keys.task("t00000")) == 0

            async with aclosing(cache.changes(after)) as batches:
                told = (await anext(batches)).changes
            assert len({change.id for change in told}) == len(told) == 50 + 25 + 10

            later = await etcd_store.commit([], [task(300, "s3")])
            await cache.wait_for(later, timeout_s=20)
            assert "t00300" in cache.tasks
        await behind_proxy.close()


async def test_a_field_of_a_later_version_survives_an_update(etcd_store: EtcdStore) -> None:
    later_field = b"\xda\x3e\x05later"  # field 1003, a string
    key = keys.service("s1")
    original = v1.Service(metadata=v1.Metadata(id="s1", name="web"))
    read_at = await put(etcd_store, key, codec.encode(original) + later_field)
    async with running(etcd_store) as cache:
        changed = v1.Service()
        changed.CopyFrom(cache.services["s1"])
        changed.spec.replicated.replicas = 5
        assert changed.metadata.revision == read_at
        await etcd_store.commit([Unchanged(key, read_at)], [Put(key, codec.encode(changed))])

        entry = await etcd_store.get(key)
        assert entry is not None
        assert later_field in entry.value
        assert v1.Service.FromString(entry.value).spec.replicated.replicas == 5
