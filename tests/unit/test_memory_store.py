"""What the store in memory adds to etcd's promises: faults, and speed."""

import asyncio
import time

import pytest

from controlplane.errors import OutcomeUnknownError, UnavailableError
from controlplane.store.memory import Fault, MemoryStore, Operation
from controlplane.store.protocol import Entry, Put, Unchanged
from tests.support.store import events_of, everything, put, watch_until


class Script:
    """Faults for the operations in turn; none when the script has ended."""

    def __init__(self, operation: Operation, *faults: Fault) -> None:
        self.operation = operation
        self.faults = list(faults)

    def on(self, operation: Operation) -> Fault:
        if operation == self.operation and self.faults:
            return self.faults.pop(0)
        return Fault()


async def test_a_refused_commit_writes_nothing() -> None:
    store = MemoryStore(faults=Script("commit", Fault(error="unavailable")))

    with pytest.raises(UnavailableError):
        await put(store, "/a")
    assert await store.get("/a") is None
    await put(store, "/a")


@pytest.mark.parametrize("written", [False, True])
async def test_an_unknown_outcome_is_one_of_two(*, written: bool) -> None:
    store = MemoryStore(faults=Script("commit", Fault(error="unknown", written=written)))

    with pytest.raises(OutcomeUnknownError):
        await put(store, "/a", b"1")

    assert await store.get("/a") == (Entry("/a", b"1", 2, 2) if written else None)


async def test_a_read_that_fails_says_that_nothing_happened() -> None:
    store = MemoryStore(faults=Script("list", Fault(error="unknown")))

    with pytest.raises(UnavailableError):
        await store.list("/")


async def test_a_cut_watch_resumes_after_what_it_delivered() -> None:
    cut = Fault(delay_s=0.001, error="unavailable")
    store = MemoryStore(faults=Script("watch", Fault(), cut, cut, Fault(), cut))
    watching = asyncio.create_task(watch_until(store, "/", after=1, revision=31))
    for number in range(30):
        await put(store, f"/{number:02}")
        await asyncio.sleep(0)

    assert [event.key for event in events_of(await watching)] == [f"/{n:02}" for n in range(30)]


async def test_a_delayed_commit_takes_place_at_its_end() -> None:
    store = MemoryStore(faults=Script("commit", Fault(delay_s=0.02)))
    slow = asyncio.create_task(store.commit([Unchanged("/a", 0)], [Put("/a", b"slow")]))
    await asyncio.sleep(0)
    await put(store, "/b")

    assert await slow == 3


async def test_history_before_a_compaction_is_let_go() -> None:
    store = MemoryStore()
    for _ in range(100):
        await put(store, "/a", b"x")
    last = await put(store, "/b", b"y")
    await store.compact(last)

    assert [entry.key for entry in await everything(store, "/")] == ["/a", "/b"]
    assert await store.get("/a") == Entry("/a", b"x", 101, 2)


async def test_it_takes_thousands_of_transactions_a_second() -> None:
    store = MemoryStore()
    began = time.monotonic()
    for number in range(5_000):
        await store.commit([Unchanged(f"/{number}", 0)], [Put(f"/{number}", b"x")])

    # Fifty thousand a second are usual; a tenth of that is a mistake, not a slow machine.
    assert time.monotonic() - began < 5
