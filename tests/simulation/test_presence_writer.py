"""Reports of many nodes on their way to the store, in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from controlplane.api.presence_writer import PresenceWriter
from controlplane.errors import ConflictError, OutcomeUnknownError, UnavailableError
from controlplane.store import keys
from controlplane.store.memory import MemoryStore
from controlplane.store.protocol import Condition, Put, Write
from estiba.kit.backoff import Backoff
from estiba.kit.clock import LoopClock
from tests.support import virtual_time

Fate = Literal["", "unanswered", "unavailable"]


class CountingStore(MemoryStore):
    """Counts transactions; ``fate`` is what happens to the next ones, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.fate: Fate = ""
        self.kept: list[tuple[Sequence[Condition], Sequence[Write]]] = []
        self.commits = 0

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        self.commits += 1
        if self.fate == "unavailable":
            raise UnavailableError("away")
        if self.fate == "unanswered":
            self.kept.append((conditions, writes))
            raise OutcomeUnknownError("no answer")
        return await super().commit(conditions, writes)

    async def value(self, key: str) -> bytes | None:
        entry = await self.get(key)
        return entry.value if entry is not None else None


@dataclass
class Holder:
    node_id: str
    presence: bytes
    deposed: bool = False
    suspended: bool = False

    def depose(self) -> None:
        self.deposed = True

    def suspend(self) -> None:
        self.suspended = True


def told(story: Coroutine[Any, Any, None]) -> None:
    virtual_time.run(story)


@asynccontextmanager
async def writing(store: MemoryStore) -> AsyncIterator[PresenceWriter]:
    backoff = Backoff(first_s=0.1, most_s=1.0, random=random.Random(1).random)
    writer = PresenceWriter(store, LoopClock(), backoff, flush_after_s=0.02)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(writer.run())
        yield writer
        running.cancel()


async def present(store: MemoryStore, node: str, session: str = "first") -> Holder:
    value = f"{session} session of {node}".encode()
    await store.commit([], [Put(keys.presence(node), value)])
    return Holder(node, value)


def status(task: str, value: bytes = b"running") -> Put:
    return Put(keys.task_status(task), value)


def test_reports_of_many_nodes_are_stored_in_few_transactions() -> None:
    async def story() -> None:
        store = CountingStore()
        holders = [await present(store, f"n{number}") for number in range(150)]
        before, acknowledged = store.commits, []
        async with writing(store) as writer:
            for holder in holders:
                done = asyncio.Event()
                acknowledged.append(done)
                writer.put(holder, [status(holder.node_id)], done.set)
            await asyncio.gather(*(each.wait() for each in acknowledged))
        assert store.commits - before == 3
        assert await store.value(keys.task_status("n149")) == b"running"

    told(story())


def test_of_several_reports_on_one_task_the_last_is_stored_once() -> None:
    async def story() -> None:
        store = CountingStore()
        holder = await present(store, "n1")
        before, done = store.commits, asyncio.Event()
        async with writing(store) as writer:
            for value in (b"starting", b"running"):
                writer.put(holder, [status("a", value)], done.set)
            await done.wait()
        assert store.commits - before == 1
        assert await store.value(keys.task_status("a")) == b"running"

    told(story())


def test_a_session_that_was_replaced_writes_nothing_and_holds_up_nobody() -> None:
    async def story() -> None:
        store = CountingStore()
        former, other = await present(store, "n1"), await present(store, "n2")
        await present(store, "n1", "second")
        done, never = asyncio.Event(), asyncio.Event()
        async with writing(store) as writer:
            writer.put(former, [status("a")], never.set)
            writer.put(other, [status("b")], done.set)
            await done.wait()
        assert former.deposed
        assert not never.is_set()
        assert await store.value(keys.task_status("a")) is None
        assert await store.value(keys.task_status("b")) == b"running"

    told(story())


def test_a_report_without_answer_can_never_undo_a_later_one() -> None:
    async def story() -> None:
        store = CountingStore()
        holder = await present(store, "n1")
        async with writing(store) as writer:
            store.fate = "unanswered"
            writer.put(holder, [status("a", b"starting")], lambda: None)
            await asyncio.sleep(1)
            store.fate = ""
            assert holder.suspended
            assert store.commits == 2, "it was not sent again"

            # The agent comes back, and reports what has become of it.
            again, done = await present(store, "n1", "second"), asyncio.Event()
            writer.put(again, [status("a", b"running")], done.set)
            await done.wait()

        (stray,) = store.kept
        with pytest.raises(ConflictError):
            await store.commit(*stray)
        assert await store.value(keys.task_status("a")) == b"running"

    told(story())


def test_reports_wait_for_a_store_that_is_away() -> None:
    async def story() -> None:
        store = CountingStore()
        holder, done = await present(store, "n1"), asyncio.Event()
        async with writing(store) as writer:
            store.fate = "unavailable"
            writer.put(holder, [status("a")], done.set)
            await asyncio.sleep(3)
            assert not done.is_set()
            store.fate = ""
            await done.wait()
        assert await store.value(keys.task_status("a")) == b"running"
        assert not holder.suspended

    told(story())


def test_to_let_go_of_a_node_is_tried_until_it_is_certain() -> None:
    async def story() -> None:
        store = CountingStore()
        holder, done = await present(store, "n1"), asyncio.Event()
        async with writing(store) as writer:
            store.fate = "unanswered"
            record = Put(keys.node_status("n1"), b"down")
            writer.release(holder, record, done.set)
            await asyncio.sleep(0.021)
            store.fate = ""
            await done.wait()
        assert await store.value(keys.presence("n1")) is None
        assert await store.value(keys.node_status("n1")) == b"down"

    told(story())


def test_a_late_goodbye_cannot_undo_a_reconnect() -> None:
    async def story() -> None:
        store = CountingStore()
        former = await present(store, "n1")
        await present(store, "n1", "second")
        async with writing(store) as writer:
            writer.release(former, Put(keys.node_status("n1"), b"down"), lambda: None)
            await asyncio.sleep(1)
        assert former.deposed
        assert await store.value(keys.presence("n1")) == b"second session of n1"
        assert await store.value(keys.node_status("n1")) is None

    told(story())
