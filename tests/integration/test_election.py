"""Leases and terms of office on a real etcd, and on its twin where time plays no part."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from controlplane.errors import DeposedError
from controlplane.store import keys
from controlplane.store.election import Election, keep_registered
from controlplane.store.etcd import EtcdStore
from controlplane.store.lease import LeaseKeeper
from controlplane.store.memory import MemoryStore
from controlplane.store.protocol import Delete, Entry, Fence, Put, Unchanged
from estiba.kit.clock import SystemClock
from estiba.v1 import types_pb2 as v1
from tests.support.etcd import Etcd
from tests.support.store import proxy_to, put, watch_until, wipe

ROOT = Path(__file__).parents[2]
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


class Member:
    """A member that campaigns and leads until it is stopped."""

    def __init__(self, store: AnyStore, member_id: str, *, ttl_s: int = 2) -> None:
        client = store.lease_client if isinstance(store, EtcdStore) else None
        clock = SystemClock()
        self.store = store
        self.keeper = LeaseKeeper(store, clock=clock, ttl_s=ttl_s, client=client)
        self.election = Election(store, self.keeper, member_id=member_id, clock=clock)
        self.message = v1.Member(id=member_id, address="127.0.0.1:7443")
        self.fences: asyncio.Queue[Fence] = asyncio.Queue()
        self.ended = asyncio.Event()
        self._clock = clock

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.keeper.run())
            group.create_task(self.election.run(self._lead))
            group.create_task(
                keep_registered(self.store, self.keeper, self.message, clock=self._clock)
            )

    async def _lead(self, fence: Fence) -> None:
        self.ended.clear()
        self.fences.put_nowait(fence)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def leads(self, *, within_s: float = 10.0) -> Fence:
        async with asyncio.timeout(within_s):
            return await self.fences.get()


@asynccontextmanager
async def running(*members: Member) -> AsyncIterator[list["asyncio.Task[None]"]]:
    tasks = [asyncio.create_task(member.run()) for member in members]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


async def until(store: AnyStore, key: str, holds: Callable[[Entry | None], bool]) -> Entry | None:
    """Return what the key holds as soon as it is as wanted."""
    while True:
        page = await store.list(key)
        entry = page.entries[0] if page.entries else None
        if holds(entry):
            return entry
        await watch_until(store, key, after=page.revision, revision=page.revision + 1)


async def given_up(store: AnyStore, key: str, lease: int) -> None:
    """Return when the key is no longer of this lease: gone, or another's already."""
    await until(store, key, lambda entry: entry is None or entry.lease != lease)


async def registered(store: AnyStore, member_id: str, lease: int) -> Entry:
    key = keys.member(member_id)
    entry = await until(store, key, lambda entry: entry is not None and entry.lease == lease)
    assert entry is not None
    return entry


def stall(length_s: float) -> None:
    """Keep the event loop from running, as a long computation does."""
    time.sleep(length_s)


async def test_one_of_two_leads_and_the_other_follows_at_once(store: AnyStore) -> None:
    one, other = Member(store, "m1", ttl_s=60), Member(store, "m2", ttl_s=60)
    async with running(one) as [first]:
        fence = await one.leads()
        async with running(other):
            await other.keeper.acquired()
            assert other.fences.empty()
            assert one.election.fence == fence

            await stop(first)
            second = await other.leads(within_s=5)

        assert second.create_revision > fence.create_revision
        with pytest.raises(DeposedError):
            await store.commit([fence], [Put("/estiba/x", b"late")])


async def test_a_stopped_member_leaves_no_key_behind(store: AnyStore) -> None:
    member = Member(store, "m1", ttl_s=60)
    async with running(member) as [task]:
        await member.leads()
        await registered(store, "m1", member.keeper.lease)
        await stop(task)

    assert (await store.list(keys.ROOT)).entries == ()


async def test_a_member_is_registered_under_its_lease(store: AnyStore) -> None:
    member = Member(store, "m1")
    async with running(member):
        lease = await member.keeper.acquired()
        entry = await registered(store, "m1", lease.id)

        assert member.keeper.lease == lease.id
        assert v1.Member.FromString(entry.value) == member.message


async def test_after_its_lease_ends_a_member_begins_again_with_a_new_one(store: AnyStore) -> None:
    member = Member(store, "m1")
    async with running(member):
        first = await member.leads()
        lease = await member.keeper.acquired()
        await store.revoke(lease.id)

        second = await member.leads()
        again = await member.keeper.acquired()

        assert lease.lost.is_set()
        assert not lease.held
        assert again.id != lease.id
        assert second.create_revision > first.create_revision
        entry = await store.get(keys.LEADER)
        assert entry is not None
        assert entry.lease == again.id
        await registered(store, "m1", again.id)


async def test_a_deleted_leader_key_ends_the_term_of_office(store: AnyStore) -> None:
    member = Member(store, "m1", ttl_s=60)
    async with running(member):
        first = await member.leads()
        await store.commit([], [Delete(keys.LEADER)])
        second = await member.leads()

        assert second.create_revision > first.create_revision


async def test_a_deposed_leader_campaigns_again_and_other_errors_end_it(store: AnyStore) -> None:
    member = Member(store, "m1", ttl_s=60)
    terms: list[Fence] = []

    async def lead(fence: Fence) -> None:
        terms.append(fence)
        if len(terms) == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(store.commit([Fence(1)], []))
        raise RuntimeError("not foreseen")

    keeping = asyncio.create_task(member.keeper.run())
    with pytest.raises(RuntimeError, match="not foreseen"):
        await member.election.run(lead)
    await stop(keeping)

    assert len(terms) == 2
    assert await store.get(keys.LEADER) is None


async def test_a_lease_lives_through_a_loop_that_is_stalled(etcd_store: EtcdStore) -> None:
    member = Member(etcd_store, "m1")
    async with running(member):
        fence = await member.leads()
        stall(4)
        await asyncio.sleep(0.05)

        assert not member.ended.is_set()
        await etcd_store.commit([fence], [Put("/estiba/x", b"")])


async def test_a_lease_counts_as_lost_before_it_ends_in_etcd(
    etcd: Etcd, etcd_store: EtcdStore
) -> None:
    async with proxy_to(etcd.port) as proxy:
        cut_off = EtcdStore([proxy.endpoint], tls=None, timeout_s=1.0)
        member = Member(cut_off, "m1")
        async with running(member):
            fence = await member.leads()
            lease = await member.keeper.acquired()
            ended_in_etcd = asyncio.create_task(given_up(etcd_store, keys.LEADER, lease.id))
            proxy.freeze()
            async with asyncio.timeout(10):
                await lease.lost.wait()
            assert not ended_in_etcd.done()
            assert member.keeper.lease == 0

            successor = Member(etcd_store, "m2")
            async with running(successor):
                await successor.leads()
                await ended_in_etcd
                await member.ended.wait()
                with pytest.raises(DeposedError):
                    await etcd_store.commit([fence], [Put("/estiba/x", b"prepared before")])
            proxy.thaw()
        await cut_off.close()


async def test_a_write_prepared_before_the_lease_was_lost_is_refused(
    etcd: Etcd, etcd_store: EtcdStore
) -> None:
    async with proxy_to(etcd.port) as proxy:
        slow = EtcdStore([proxy.endpoint], tls=None, timeout_s=30.0)
        revision = await put(slow, "/estiba/task/t1", b"before")
        lease = await etcd_store.grant(60)
        fence = Fence(await put(etcd_store, keys.LEADER, b"m1", lease=lease))
        # The write is on its way, in the network, while the lease ends and another leads.
        proxy.freeze()
        prepared = asyncio.create_task(
            slow.commit(
                [fence, Unchanged("/estiba/task/t1", revision)],
                [Put("/estiba/task/t1", b"from the past")],
            )
        )
        await asyncio.sleep(0.1)
        await etcd_store.revoke(lease)
        await put(etcd_store, keys.LEADER, b"m2")
        proxy.thaw()

        with pytest.raises(DeposedError):
            await prepared
        entry = await etcd_store.get("/estiba/task/t1")
        assert entry is not None
        assert entry.value == b"before"
        await slow.close()


class Candidate:
    """A `tests.support.candidate`, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, endpoint: str, member_id: str, *, ttl_s: int) -> "Candidate":
        arguments = ("-m", "tests.support.candidate", endpoint, member_id, str(ttl_s))
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        return cls(process)

    async def says(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            return (await self._process.stdout.readline()).decode().strip()

    def write(self, value: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{value}\n".encode())

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


async def test_a_leader_that_was_stopped_for_a_while_is_refused_and_notices(
    etcd: Etcd, etcd_store: EtcdStore
) -> None:
    async with AsyncExitStack() as stack:
        one = await Candidate.start(etcd.endpoint, "m1", ttl_s=2)
        stack.push_async_callback(one.kill)
        assert (await one.says()).startswith("leads ")
        one.write("while leading")
        assert (await one.says()).startswith("written ")
        other = await Candidate.start(etcd.endpoint, "m2", ttl_s=2)
        stack.push_async_callback(other.kill)

        one.send(signal.SIGSTOP)
        assert (await other.says()).startswith("leads ")
        one.write("prepared before it was stopped")
        one.send(signal.SIGCONT)

        assert sorted([await one.says(), await one.says()]) == ["lost", "refused"]
        entry = await etcd_store.get("/estiba/written")
        assert entry is not None
        assert entry.value == b"while leading"


async def test_a_leader_that_is_killed_is_followed_when_its_lease_ends(etcd: Etcd) -> None:
    async with AsyncExitStack() as stack:
        one = await Candidate.start(etcd.endpoint, "m1", ttl_s=2)
        stack.push_async_callback(one.kill)
        assert (await one.says()).startswith("leads ")
        other = await Candidate.start(etcd.endpoint, "m2", ttl_s=2)
        stack.push_async_callback(other.kill)
        await one.kill()

        assert (await other.says()).startswith("leads ")
