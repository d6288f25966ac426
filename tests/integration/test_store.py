"""What both stores promise, asked of etcd and of its twin in memory alike."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.errors import (
    CompactedError,
    ConflictError,
    DeposedError,
    LeaseEndedError,
    StoreError,
)
from controlplane.store.etcd import EtcdStore
from controlplane.store.memory import MemoryStore
from controlplane.store.protocol import (
    MAX_TXN_BYTES,
    MAX_TXN_OPS,
    Condition,
    Delete,
    Entry,
    Fence,
    HasValue,
    Put,
    Unchanged,
    Write,
)
from tests.support.etcd import Etcd
from tests.support.store import events_of, everything, put, watch_until, wipe

AnyStore = EtcdStore | MemoryStore


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest, etcd: Etcd) -> AsyncIterator[AnyStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    store = etcd.store()
    await wipe(store)
    yield store
    await store.close()


async def test_a_key_that_was_put_is_read_back(store: AnyStore) -> None:
    first = await put(store, "/a", b"one")
    second = await put(store, "/a", b"two")

    assert second == first + 1
    assert await store.get("/a") == Entry("/a", b"two", second, first)
    assert await store.get("/b") is None
    assert await store.revision() == second


async def test_a_write_based_on_an_old_read_is_refused(store: AnyStore) -> None:
    first = await store.commit([Unchanged("/a", 0)], [Put("/a", b"1")])
    second = await store.commit([Unchanged("/a", first)], [Put("/a", b"2")])

    with pytest.raises(ConflictError) as refused:
        await store.commit([Unchanged("/a", first)], [Put("/a", b"3")])
    with pytest.raises(ConflictError):
        await store.commit([Unchanged("/a", 0)], [Put("/a", b"3")])

    assert refused.value.key == "/a"
    assert await store.get("/a") == Entry("/a", b"2", second, first)


async def test_the_error_names_the_condition_that_failed(store: AnyStore) -> None:
    revision = await put(store, "/a", b"x")

    with pytest.raises(ConflictError, match="/gone"):
        await store.commit([Unchanged("/a", revision), HasValue("/gone", b"")], [])
    with pytest.raises(ConflictError, match="/a has changed"):
        await store.commit([HasValue("/a", b"y"), Unchanged("/gone", 0)], [])


async def test_a_transaction_is_written_as_a_whole_or_not_at_all(store: AnyStore) -> None:
    await put(store, "/a")
    before = await store.revision()

    with pytest.raises(ConflictError):
        await store.commit([Unchanged("/a", 1)], [Put("/b", b""), Delete("/a")])

    assert await store.revision() == before
    assert [entry.key for entry in await everything(store, "/")] == ["/a"]


async def test_a_transaction_without_effect_makes_no_revision(store: AnyStore) -> None:
    before = await put(store, "/a")

    assert await store.commit([Unchanged("/a", before)], [Delete("/never")]) == before
    assert await store.commit([Unchanged("/a", before)], []) == before


async def test_a_deposed_leader_cannot_write(store: AnyStore) -> None:
    first_term = Fence(await put(store, "/leader"), key="/leader")
    await store.commit([first_term], [Put("/x", b"first")])
    await store.commit([], [Delete("/leader")])
    with pytest.raises(DeposedError):
        await store.commit([first_term], [Put("/x", b"nobody leads")])

    second_term = Fence(await put(store, "/leader"), key="/leader")
    await store.commit([second_term], [Put("/x", b"second")])

    with pytest.raises(DeposedError):
        await store.commit([Unchanged("/x", 1), first_term], [Put("/x", b"late")])
    found = await store.get("/x")
    assert found is not None
    assert found.value == b"second"


async def test_a_leader_key_written_again_is_still_the_same_term(store: AnyStore) -> None:
    term = Fence(await put(store, "/leader", b"1"), key="/leader")
    await put(store, "/leader", b"2")

    await store.commit([term], [Put("/x", b"")])


async def test_what_etcd_cannot_take_is_refused_before_it_is_sent(store: AnyStore) -> None:
    puts = [Put(f"/{number}", b"") for number in range(MAX_TXN_OPS + 1)]
    await store.commit([], puts[:-1])

    with pytest.raises(ValueError, match="129 writes"):
        await store.commit([], puts)
    with pytest.raises(ValueError, match="fence"):
        await store.commit([Fence(0)], [])
    with pytest.raises(ValueError, match="one key twice"):
        await store.commit([], [Put("/a", b""), Delete("/a")])
    with pytest.raises(ValueError, match="bytes"):
        await put(store, "/a", b"x" * (MAX_TXN_BYTES + 1))
    await put(store, "/a", b"x" * MAX_TXN_BYTES)


async def test_pages_of_a_list_belong_to_one_revision(store: AnyStore) -> None:
    keys = [f"/p/{number:03}" for number in range(25)]
    await store.commit([], [Put(key, b"old") for key in keys])
    await put(store, "/q")

    page = await store.list("/p/", limit=10)
    await store.commit([], [Delete(keys[15]), Put(keys[20], b"new"), Put("/p/0145", b"new")])
    seen = list(page.entries)
    pages = 1
    while page.next_key:
        page = await store.list("/p/", start=page.next_key, limit=10, at=page.revision)
        seen += page.entries
        pages += 1

    assert pages == 3
    assert [entry.key for entry in seen] == keys
    assert {entry.value for entry in seen} == {b"old"}


async def test_a_list_at_a_compacted_revision_says_so(store: AnyStore) -> None:
    old = await put(store, "/a", b"1")
    new = await put(store, "/a", b"2")
    await store.compact(new)

    with pytest.raises(CompactedError):
        await store.list("/", at=old)
    assert (await store.list("/", at=new)).entries[0].value == b"2"


async def test_a_watch_tells_every_change_once_and_in_order(store: AnyStore) -> None:
    start = await put(store, "/w/a", b"1")
    await store.commit([], [Put("/w/b", b"1"), Put("/w/a", b"2")])
    await put(store, "/other", b"")
    last = await store.commit([], [Delete("/w/a"), Put("/w/c", b"1")])

    batches = await watch_until(store, "/w/", after=start, revision=last)

    assert [(e.key, e.entry.value if e.entry else None) for e in events_of(batches)] == [
        ("/w/b", b"1"),
        ("/w/a", b"2"),
        ("/w/a", None),
        ("/w/c", b"1"),
    ]
    assert {event.revision for event in events_of(batches)} == {start + 1, last}


async def test_a_watch_goes_on_with_what_comes_later(store: AnyStore) -> None:
    start = await store.revision()
    running = asyncio.create_task(watch_until(store, "/w/", after=start, revision=start + 20))
    for number in range(20):
        await put(store, f"/w/{number:02}")
        await asyncio.sleep(0)

    assert [event.key for event in events_of(await running)] == [f"/w/{n:02}" for n in range(20)]


async def test_a_watch_from_before_the_compaction_says_so(store: AnyStore) -> None:
    start = await put(store, "/a")
    await put(store, "/a")
    last = await put(store, "/a")
    await store.compact(last)

    with pytest.raises(CompactedError):
        await watch_until(store, "/", after=start, revision=last)


async def test_a_deletion_at_the_compacted_revision_is_not_missed(store: AnyStore) -> None:
    before = await put(store, "/a")
    deleted = await store.commit([], [Delete("/a")])
    last = await put(store, "/b")
    await store.compact(deleted)

    with pytest.raises(CompactedError):
        await watch_until(store, "/", after=before, revision=last)
    seen = events_of(await watch_until(store, "/", after=deleted, revision=last))
    assert [event.key for event in seen] == ["/b"]


async def test_the_keys_of_a_lease_go_when_it_is_revoked(store: AnyStore) -> None:
    lease = await store.grant(60)
    await put(store, "/kept")
    for key in ("/b", "/a"):
        await put(store, key, lease=lease)
    last = await put(store, "/c", lease=lease)
    await put(store, "/c")

    await store.revoke(lease)
    await store.revoke(lease)

    assert [entry.key for entry in await everything(store, "/")] == ["/c", "/kept"]
    seen = events_of(await watch_until(store, "/", after=last + 1, revision=last + 2))
    assert [(event.key, event.revision) for event in seen] == [("/a", last + 2), ("/b", last + 2)]
    assert await store.renew(lease) == 0.0
    with pytest.raises(LeaseEndedError):
        await put(store, "/a", lease=lease)


async def test_a_lease_ends_unless_it_is_renewed(store: AnyStore) -> None:
    renewed, left = await store.grant(2), await store.grant(2)
    await put(store, "/renewed", lease=renewed)
    revision = await put(store, "/left", lease=left)

    async def keep() -> None:
        while True:
            assert await store.renew(renewed) == 2.0
            await asyncio.sleep(0.5)

    keeping = asyncio.create_task(keep())
    async with asyncio.timeout(10):
        batches = await watch_until(store, "/", after=revision, revision=revision + 1)
    keeping.cancel()

    assert [(event.key, event.entry) for event in events_of(batches)] == [("/left", None)]


KEYS = ("/h/a", "/h/b", "/h/c")
keys_ = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"1", b"2"])
# A revision is given as how many writes ago it was: it means the same in both stores.
conditions = st.one_of(
    st.tuples(st.just(Unchanged), keys_, st.integers(-1, 6)),
    st.tuples(st.just(HasValue), keys_, values),
    st.tuples(st.just(Fence), keys_, st.integers(0, 6)),
)
writes = st.one_of(st.builds(Put, keys_, values), st.builds(Delete, keys_))
transactions = st.tuples(
    st.lists(conditions, max_size=2), st.lists(writes, max_size=3, unique_by=lambda it: it.key)
)


@given(history=st.lists(transactions, max_size=20))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_the_twin_does_what_etcd_does(
    etcd_store: EtcdStore, history: list[tuple[list[tuple[Any, str, Any]], list[Write]]]
) -> None:
    await wipe(etcd_store)
    twin = MemoryStore()
    offset = await put(etcd_store, "/h/start") - await put(twin, "/h/start")
    start = await twin.revision()

    for described, written in history:
        now = await twin.revision()
        outcomes = [
            await _outcome(
                store.commit, [_condition(it, now, shift) for it in described], written, shift
            )
            for store, shift in ((twin, 0), (etcd_store, offset))
        ]
        assert outcomes[0] == outcomes[1]

    end = await twin.revision()
    assert [_shifted(entry, offset) for entry in await everything(twin, "/h/")] == (
        await everything(etcd_store, "/h/", limit=2)
    )
    if end > start:
        seen = await watch_until(twin, "/h/", after=start, revision=end)
        truly = await watch_until(etcd_store, "/h/", after=start + offset, revision=end + offset)
        assert [
            (event.key, event.revision + offset, event.entry and _shifted(event.entry, offset))
            for event in events_of(seen)
        ] == [(event.key, event.revision, event.entry) for event in events_of(truly)]


def _condition(described: tuple[Any, str, Any], now: int, shift: int) -> Condition:
    kind, key, argument = described
    if kind is HasValue:
        return HasValue(key, argument)
    revision = max(1, now - argument) + shift
    if kind is Fence:
        return Fence(revision, key)
    return Unchanged(key, 0 if argument == -1 else revision)


def _shifted(entry: Entry, offset: int) -> Entry:
    return Entry(
        entry.key, entry.value, entry.mod_revision + offset, entry.create_revision + offset
    )


async def _outcome(
    commit: Callable[[list[Condition], list[Write]], Awaitable[int]],
    conditions: list[Condition],
    written: list[Write],
    shift: int,
) -> object:
    try:
        return await commit(conditions, written) - shift
    except ConflictError as error:
        return (type(error), error.key)
    except StoreError as error:
        return type(error)
