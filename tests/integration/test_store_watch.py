"""The watch on a real etcd, cut by a proxy: no event is missed, none comes twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import groupby, pairwise

import grpc
import pytest
from etcd3aio import _protobuf as pb

from controlplane.store.codec import prefix_end
from controlplane.store.etcd import EtcdStore
from controlplane.store.protocol import Batch, Delete, Put, Write
from tests.support.etcd import Etcd, start_etcd
from tests.support.store import Proxy, events_of, proxy_to, put, watch_until

TRANSACTIONS = 1000
PUTS = 7
VALUE = b"v" * 700
Change = tuple[str, int]


@pytest.fixture
async def proxy(etcd: Etcd) -> AsyncIterator[Proxy]:
    async with proxy_to(etcd.port) as proxy:
        yield proxy


@pytest.fixture
async def behind_proxy(proxy: Proxy) -> AsyncIterator[EtcdStore]:
    store = EtcdStore([proxy.endpoint], tls=None)
    yield store
    await store.close()


async def write_transactions(store: EtcdStore) -> tuple[int, list[Change]]:
    """Write so much that etcd has to cut it up; return where it begins, and all changes."""
    start = await store.revision()
    expected: list[Change] = []
    for number in range(TRANSACTIONS):
        writes: list[Write] = [Put(f"/w/{number % 50:02}/{i}", VALUE) for i in range(PUTS)]
        if number % 50 == 49:
            writes[0] = Delete(f"/w/{number % 50 - 1:02}/0")
        revision = await store.commit([], writes)
        expected += [(write.key, revision) for write in writes]
    return start, expected


def changes(batches: list[Batch]) -> list[Change]:
    return [(event.key, event.revision) for event in events_of(batches)]


def check_whole_revisions(batches: list[Batch]) -> None:
    last_of_each = [batch.events[-1].revision for batch in batches if batch.events]
    assert all(batch.revision >= batch.events[-1].revision for batch in batches if batch.events)
    for before, batch in zip(last_of_each, batches[1:], strict=False):
        assert not batch.events or batch.events[0].revision > before


async def fragments(endpoint: str, *, after: int, until: int) -> list[tuple[int, int, int, bool]]:
    """Watch without our code: the bytes, first and last revision of each answer, and if cut."""
    seen = []
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(endpoint, options=options) as channel:
        call = pb.WatchStub(channel).Watch()
        create = pb.WatchCreateRequest(
            key=b"/w/", range_end=prefix_end("/w/"), start_revision=after + 1, fragment=True
        )
        await call.write(pb.WatchRequest(create_request=create))
        last = 0
        while last < until:
            answer = await call.read()
            if answer.events:
                revisions = [event.kv.mod_revision for event in answer.events]
                last = revisions[-1]
                seen.append((answer.ByteSize(), revisions[0], last, bool(answer.fragment)))
        call.cancel()
    return seen


async def test_a_watch_cut_within_an_answer_and_a_transaction_misses_nothing(
    etcd: Etcd, etcd_store: EtcdStore, proxy: Proxy, behind_proxy: EtcdStore
) -> None:
    start, expected = await write_transactions(etcd_store)
    end = expected[-1][1]
    answers = await fragments(etcd.endpoint, after=start, until=end)
    cut_up = [answer for answer in answers if answer[3]]
    split = [(one, two) for one, two in pairwise(answers) if one[2] == two[1]]
    assert cut_up, "etcd did not cut its answer up"
    assert split, "etcd did not cut within a transaction"

    # Cut where the first part of a cut answer is in and the last is not; before that in the
    # middle of the first part, and once so early that only the stream has been made.
    first_part = answers[0][0]
    proxy.cuts = [200, first_part // 2, first_part + 50_000, first_part + first_part // 2]
    planned = len(proxy.cuts)
    batches = await watch_until(behind_proxy, "/w/", after=start, revision=end)

    assert proxy.made_cuts == planned
    assert changes(batches) == expected
    check_whole_revisions(batches)


async def test_a_watch_cut_again_and_again_while_it_catches_up_misses_nothing(
    etcd_store: EtcdStore, proxy: Proxy, behind_proxy: EtcdStore
) -> None:
    start, expected = await write_transactions(etcd_store)
    # All of it takes more than 4.9 MB.
    proxy.cuts = [700_000, 4_800_000, 2_100_000, 3_500_000, 1_400_000, 2_800_000]
    planned = len(proxy.cuts)

    batches = await watch_until(behind_proxy, "/w/", after=start, revision=expected[-1][1])

    assert proxy.made_cuts == planned
    assert changes(batches) == expected
    check_whole_revisions(batches)


async def test_a_watch_cut_while_changes_come_misses_nothing(
    etcd_store: EtcdStore, proxy: Proxy, behind_proxy: EtcdStore
) -> None:
    start = await etcd_store.revision()
    proxy.cuts = [60_000, 200_000, 40_000, 400_000, 60_000, 90_000]
    planned = len(proxy.cuts)
    # One revision for each transaction, and as many in between: nobody else writes.
    watching = asyncio.create_task(
        watch_until(behind_proxy, "/w/", after=start, revision=start + TRANSACTIONS)
    )
    _, expected = await write_transactions(etcd_store)

    batches = await watching

    assert proxy.made_cuts == planned
    assert changes(batches) == expected
    check_whole_revisions(batches)


async def test_one_large_transaction_comes_as_one_batch(
    etcd_store: EtcdStore, proxy: Proxy, behind_proxy: EtcdStore
) -> None:
    start = await etcd_store.revision()
    for number in range(3):
        await etcd_store.commit([], [Put(f"/w/{number}/{i:03}", b"x" * 11_000) for i in range(120)])
    proxy.cuts = [1_000_000, 2_500_000]

    batches = await watch_until(behind_proxy, "/w/", after=start, revision=start + 3)

    found = [
        (revision, len(list(events)))
        for revision, events in groupby(events_of(batches), key=lambda event: event.revision)
    ]
    assert found == [(start + 1, 120), (start + 2, 120), (start + 3, 120)]
    check_whole_revisions(batches)


async def test_a_watch_outlives_a_kill_of_etcd(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with start_etcd(tmp_path_factory.mktemp("killed")) as etcd:
        store = etcd.store()
        start = await put(store, "/w/before")
        async with aclosing(store.watch("/w/", after=start)) as watch:
            coming = asyncio.create_task(anext(watch))
            await put(store, "/w/1")
            assert changes([await coming]) == [("/w/1", start + 1)]
            coming = asyncio.create_task(anext(watch))
            await etcd.kill()
            await etcd.start()
            await put(store, "/w/2")
            assert changes([await coming]) == [("/w/2", start + 2)]
        await store.close()
