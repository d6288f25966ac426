"""The cache on the store in memory: what it shows, what it tells, what it keeps."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
from google.protobuf.message import Message

from controlplane.errors import CompactedError, UnavailableError
from controlplane.store import codec, keys
from controlplane.store.cache import Cache, CacheBatch, CacheChange
from controlplane.store.memory import Fault, MemoryStore, Operation
from controlplane.store.protocol import Batch, Delete, Put, Write
from estiba.kit.clock import LoopClock
from estiba.v1 import types_pb2 as v1
from estiba.wire import seconds, timestamp


@asynccontextmanager
async def running(store: MemoryStore, *, most_changes_kept: int = 20_000) -> AsyncIterator[Cache]:
    cache = Cache(store, clock=LoopClock(), most_changes_kept=most_changes_kept)
    running = asyncio.create_task(cache.run(), name="cache")
    await cache.ready.wait()
    try:
        yield cache
    finally:
        running.cancel()
        await asyncio.wait([running])


async def write(store: MemoryStore, *writes: Write) -> int:
    return await store.commit([], writes)


def put(key: str, message: Message) -> Put:
    return Put(key, codec.encode(message))


def service(id_: str, name: str) -> Put:
    metadata = v1.Metadata(id=id_, namespace="default", name=name)
    return put(keys.service(id_), v1.Service(metadata=metadata))


def task(id_: str, service_id: str, node_id: str = "") -> Put:
    metadata = v1.Metadata(id=id_)
    return put(keys.task(id_), v1.Task(metadata=metadata, service_id=service_id, node_id=node_id))


def node(id_: str) -> Put:
    metadata = v1.Metadata(id=id_, namespace="default", name=f"host-{id_}")
    return put(keys.node(id_), v1.Node(metadata=metadata))


def presence(node_id: str, member_id: str = "m1") -> Put:
    return put(keys.presence(node_id), v1.Presence(session_id="s", member_id=member_id))


def ids(tasks: Sequence[v1.Task]) -> list[str]:
    return [task.metadata.id for task in tasks]


async def changes_until(cache: Cache, *, after: int, revision: int) -> list[CacheChange]:
    found: list[CacheChange] = []
    async with aclosing(cache.changes(after)) as batches:
        async for batch in batches:
            found += batch.changes
            if batch.revision >= revision:
                return found
    raise AssertionError("the changes ended")


async def test_it_shows_what_was_there_before_and_what_came_later() -> None:
    store = MemoryStore()
    first = await write(store, service("s1", "web"), task("t1", "s1", "n1"))
    async with running(store) as cache:
        assert cache.revision == first
        second = await write(store, task("t2", "s1", "n2"), task("t3", "s2", "n1"))
        await cache.wait_for(second, timeout_s=1)

        assert sorted(cache.tasks) == ["t1", "t2", "t3"]
        assert ids(cache.tasks_of("s1")) == ["t1", "t2"]
        assert ids(cache.tasks_on("n1")) == ["t1", "t3"]
        assert ids(cache.tasks_of("s3")) == []
        named = cache.service_named("web")
        assert named is not None
        assert named.metadata.revision == first
        assert cache.key_revision(keys.task("t1")) == first
        assert cache.key_revision(keys.task("t2")) == second
        assert cache.key_revision(keys.task("t9")) == 0


async def test_indexes_follow_when_objects_change_and_go() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        await write(store, task("t1", "s1"), service("s1", "old"))
        await write(store, task("t1", "s1", "n1"), service("s1", "new"))
        await cache.catch_up()
        assert ids(cache.tasks_on("n1")) == ["t1"]
        assert cache.service_named("old") is None
        assert cache.service_named("new") is not None

        await write(store, Delete(keys.task("t1")), Delete(keys.service("s1")))
        await cache.catch_up()
        assert cache.tasks_on("n1") == cache.tasks_of("s1") == []
        assert cache.service_named("new") is None
        assert cache.services == cache.tasks == {}


async def test_a_task_carries_its_status_and_the_later_revision() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        stored = v1.TaskStatus(state=v1.TASK_STATE_RUNNING, run=2)
        first = await write(store, put(keys.task_status("t1"), stored))
        second = await write(store, task("t1", "s1"))
        await cache.catch_up()
        assert cache.tasks["t1"].status.run == 2
        assert cache.tasks["t1"].metadata.revision == second
        assert first < second

        stored.run = 3
        third = await write(store, put(keys.task_status("t1"), stored))
        before = cache.tasks["t1"]
        await cache.catch_up()
        assert cache.tasks["t1"].status.run == 3
        assert cache.tasks["t1"].metadata.revision == third
        assert before.status.run == 2, "a message that was handed out has changed"

        await write(store, task("t1", "s1", "n1"))
        await cache.catch_up()
        assert cache.tasks["t1"].status.run == 3

        [change] = await changes_until(cache, after=second, revision=third)
        assert (change.kind, change.id) == ("task", "t1")
        assert isinstance(change.before, v1.Task)
        assert isinstance(change.after, v1.Task)
        assert (change.before.status.run, change.after.status.run) == (2, 3)

        await write(store, Delete(keys.task_status("t1")))
        await cache.catch_up()
        assert not cache.tasks["t1"].HasField("status")


async def test_a_node_is_ready_while_present_then_unknown_or_down() -> None:
    store = MemoryStore()
    status_key = keys.node_status("n1")
    async with running(store) as cache:
        await write(store, node("n1"))
        await cache.catch_up()
        unknown = cache.nodes["n1"].status
        assert unknown.state == v1.NODE_STATE_UNKNOWN
        assert seconds(unknown.since) > 0
        assert "session" in unknown.message

        recorded = v1.NodeStatus(state=v1.NODE_STATE_READY, since=timestamp(5.0))
        recorded.description.hostname = "host"
        await write(store, presence("n1", "m2"), put(status_key, recorded))
        await cache.catch_up()
        ready = cache.nodes["n1"].status
        assert (ready.state, ready.member_id) == (v1.NODE_STATE_READY, "m2")
        assert seconds(ready.since) == 5.0
        assert ready.description.hostname == "host"

        before = await store.revision()
        recorded.state = v1.NODE_STATE_DOWN
        recorded.message = "silent for 5 s"
        down_at = await write(store, Delete(keys.presence("n1")), put(status_key, recorded))
        await cache.catch_up()
        down = cache.nodes["n1"].status
        assert (down.state, down.message, down.member_id) == (
            v1.NODE_STATE_DOWN,
            "silent for 5 s",
            "",
        )
        told = await changes_until(cache, after=before, revision=down_at)
        assert sorted(change.kind for change in told) == ["node", "presence"]


async def test_a_node_whose_record_says_ready_is_unknown_without_presence() -> None:
    store = MemoryStore()
    recorded = v1.NodeStatus(state=v1.NODE_STATE_READY, since=timestamp(5.0))
    async with running(store) as cache:
        lease = await store.grant(60)
        await write(
            store,
            node("n1"),
            put(keys.node_status("n1"), recorded),
            Put(keys.presence("n1"), b"", lease),
        )
        await cache.catch_up()
        assert cache.nodes["n1"].status.state == v1.NODE_STATE_READY

        await store.revoke(lease)
        await cache.catch_up()
        gone = cache.nodes["n1"].status
        assert gone.state == v1.NODE_STATE_UNKNOWN
        assert seconds(gone.since) > 5.0

        await write(store, node("n1"))
        await cache.catch_up()
        assert cache.nodes["n1"].status.since == gone.since


async def test_a_node_keeps_the_revision_of_its_object() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        revision = await write(store, node("n1"))
        await write(store, presence("n1"))
        await cache.catch_up()
        assert cache.nodes["n1"].metadata.revision == revision
        named = cache.node_named("host-n1")
        assert named is not None
        assert named.metadata.id == "n1"


async def test_members_know_which_of_them_leads() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        for member_id in ("m1", "m2"):
            await write(store, put(keys.member(member_id), v1.Member(id=member_id)))
        await write(store, Put(keys.LEADER, b"m1"))
        await cache.catch_up()
        assert cache.leader_member_id == "m1"
        assert cache.members["m1"].leader
        assert not cache.members["m2"].leader

        before = await write(store, Delete(keys.LEADER))
        after = await write(store, Put(keys.LEADER, b"m2"))
        await cache.catch_up()
        assert cache.members["m2"].leader
        assert not cache.members["m1"].leader
        told = await changes_until(cache, after=before, revision=after)
        assert [(change.kind, change.id) for change in told] == [("member", "m2")]


async def test_the_rest_of_the_keys_are_shown_too() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        await write(
            store,
            presence("n1"),
            put(keys.template("s1", 12), v1.Template(service_id="s1", generation=12)),
            put(keys.block("net", "n1"), v1.NodeBlock(cidr="10.10.3.0/24")),
            put(keys.CLUSTER, v1.Cluster(name="test", epoch=3)),
            Put(keys.node_removed("n9"), b""),
            Put(keys.ROOT + "of-a-later-version/x", b"?"),
        )
        await cache.catch_up()

        assert cache.templates["s1", 12].generation == 12
        assert cache.blocks["net", "n1"].cidr == "10.10.3.0/24"
        assert cache.cluster is not None
        assert cache.cluster.epoch == 3
        assert cache.removed_nodes == {"n9"}
        assert cache.presences["n1"].member_id == "m1"
        assert [change.id for batch in await collect(cache, 1) for change in batch.changes] == [
            "n1",
            "s1/12",
            "net/n1",
        ]


async def collect(cache: Cache, count: int) -> list[CacheBatch]:
    found = []
    async with aclosing(cache.changes(cache.revision - count)) as batches:
        async for batch in batches:
            found.append(batch)
            if len(found) == count:
                break
    return found


async def test_a_broken_value_is_left_out_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    async with running(store) as cache:
        await write(store, Put(keys.task("t1"), b"\xff"), task("t2", "s1"))
        await cache.catch_up()

        assert list(cache.tasks) == ["t2"]
        assert "/estiba/task/t1 holds no Task" in caplog.text
        await write(store, task("t1", "s1"))
        await cache.catch_up()
        assert sorted(cache.tasks) == ["t1", "t2"]


async def test_what_nobody_shows_is_a_bookmark() -> None:
    store = MemoryStore()
    async with running(store) as cache:
        after = cache.revision
        revision = await write(store, Put(keys.service_name("default", "web"), b"s1"))
        async with aclosing(cache.changes(after)) as batches:
            assert await anext(batches) == CacheBatch(revision, ())


async def test_changes_resume_from_any_revision_that_is_kept() -> None:
    store = MemoryStore()
    async with running(store, most_changes_kept=10) as cache:
        start = cache.revision
        for number in range(25):
            await write(store, task(f"t{number}", "s1"))
        await cache.catch_up()

        with pytest.raises(CompactedError):
            await anext(cache.changes(start))
        kept = await changes_until(cache, after=cache.revision - 10, revision=cache.revision)
        assert [change.id for change in kept] == [f"t{number}" for number in range(15, 25)]


async def test_a_follower_that_falls_behind_is_told() -> None:
    store = MemoryStore()
    async with (
        running(store, most_changes_kept=10) as cache,
        aclosing(cache.changes(cache.revision)) as batches,
    ):
        await write(store, task("t0", "s1"))
        assert [change.id for change in (await anext(batches)).changes] == ["t0"]
        for number in range(1, 25):
            await write(store, task(f"t{number}", "s1"))
        await cache.catch_up()
        with pytest.raises(CompactedError):
            await anext(batches)


async def test_waiting_for_a_revision_that_does_not_come_ends_with_a_sentence() -> None:
    async with running(MemoryStore()) as cache:
        with pytest.raises(UnavailableError, match="up to revision 1, and not 5 within"):
            await cache.wait_for(5, timeout_s=0.01)


class WatchesHeld:
    """Faults that hold back every watch until `release`, however long."""

    def __init__(self) -> None:
        self.held = False

    def on(self, operation: Operation) -> Fault:
        if operation == "watch" and self.held:
            return Fault(delay_s=0.001, error="unavailable")
        return Fault()


async def test_after_a_compaction_it_lists_again_and_its_followers_see_the_outcome() -> None:
    faults = WatchesHeld()
    store = MemoryStore(faults=faults)
    async with running(store) as cache:
        await write(store, task("kept", "s1"), task("gone", "s1"), task("changed", "s1"))
        await cache.catch_up()
        after = cache.revision

        faults.held = True
        await write(store, task("new", "s1"))
        await write(store, Delete(keys.task("gone")))
        await write(store, task("changed", "s2"))
        last = await write(store, task("changed", "s3"))
        await store.compact(last)
        await cache.wait_for(last, timeout_s=5)
        faults.held = False

        assert sorted(cache.tasks) == ["changed", "kept", "new"]
        assert ids(cache.tasks_of("s3")) == ["changed"]
        told = await changes_until(cache, after=after, revision=last)
        assert sorted((change.id, change.after is None) for change in told) == [
            ("changed", False),
            ("gone", True),
            ("new", False),
        ]
        revision = await write(store, task("later", "s1"))
        await cache.wait_for(revision, timeout_s=5)
        assert "later" in cache.tasks


class Forgetful(MemoryStore):
    """Its watches keep the changes of one task to themselves."""

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        async with aclosing(super().watch(prefix, after=after)) as batches:
            async for batch in batches:
                told = tuple(it for it in batch.events if it.key != keys.task("kept-back"))
                yield Batch(batch.revision, told)


async def test_what_a_watch_kept_back_is_found_by_the_next_list(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Forgetful()
    cache = Cache(store, clock=LoopClock(), relist_every_s=0.02)
    running = asyncio.create_task(cache.run())
    await cache.ready.wait()
    after = cache.revision
    revision = await write(store, task("told", "s1"), task("kept-back", "s1"))
    await cache.wait_for(revision, timeout_s=5)
    assert list(cache.tasks) == ["told"]

    async with aclosing(cache.changes(after)) as batches:
        assert [change.id for change in (await anext(batches)).changes] == ["told"]
        with pytest.raises(CompactedError):
            await anext(batches)

    assert sorted(cache.tasks) == ["kept-back", "told"]
    assert "the watch has missed 1 changes" in caplog.text
    running.cancel()
    await asyncio.wait([running])


class FirstAnswersFail:
    def __init__(self) -> None:
        self.left = 2

    def on(self, operation: Operation) -> Fault:
        if operation == "list" and self.left:
            self.left -= 1
            return Fault(error="unavailable")
        return Fault()


async def test_it_waits_for_a_store_that_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controlplane.store.cache.RETRY_DELAY_S", 0.001)
    store = MemoryStore(faults=FirstAnswersFail())
    await write(store, task("t1", "s1"))
    async with running(store) as cache:
        assert list(cache.tasks) == ["t1"]


async def test_a_field_of_a_later_version_survives_an_update() -> None:
    store = MemoryStore()
    later_field = b"\xda\x3e\x05later"  # field 1003, a string
    original = codec.encode(v1.Service(metadata=v1.Metadata(id="s1", name="web")))
    async with running(store) as cache:
        await write(store, Put(keys.service("s1"), original + later_field))
        await cache.catch_up()

        changed = v1.Service()
        changed.CopyFrom(cache.services["s1"])
        changed.spec.replicated.replicas = 5
        await write(store, put(keys.service("s1"), changed))

        entry = await store.get(keys.service("s1"))
        assert entry is not None
        assert later_field in entry.value
        assert v1.Service.FromString(entry.value).spec.replicated.replicas == 5


def test_what_is_computed_is_not_stored() -> None:
    status = v1.TaskStatus(state=v1.TASK_STATE_RUNNING)
    message = v1.Task(metadata=v1.Metadata(id="t1", revision=9), status=status)
    message.usage.pids = 3

    stored = v1.Task.FromString(codec.encode(message))

    assert stored == v1.Task(metadata=v1.Metadata(id="t1"))
    assert message.metadata.revision == 9
