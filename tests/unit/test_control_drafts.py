"""How a plan becomes transactions."""

from hypothesis import given
from hypothesis import strategies as st

from controlplane.loops import drafts
from controlplane.loops.drafts import Draft, transactions
from controlplane.orchestrator import CreateTask, ForgetTask, MarkFound, MarkLost, StopTask
from controlplane.scheduler import Placement
from controlplane.store import keys
from controlplane.store.protocol import MAX_TXN_OPS, Delete, Put, Unchanged
from estiba.model import NodeId, ServiceId, TaskId
from estiba.v1 import types_pb2 as v1

SERVICE = v1.Service(metadata=v1.Metadata(id="web", name="web", namespace="default", revision=7))


def new(slot: int, attempt: int = 1) -> Draft:
    action = CreateTask(
        TaskId(f"web.{slot}.1.{attempt}"), ServiceId("web"), slot, 1, attempt, "wanted"
    )
    return drafts.create(action, SERVICE, now_s=1.0)


# By slot and attempt: whether the task is to be forgotten.
plans = st.dictionaries(st.tuples(st.integers(1, 200), st.integers(1, 9)), st.booleans())


@given(plans, st.integers(0, 10))
def test_a_slot_is_never_split_and_no_transaction_is_too_large(
    wanted: dict[tuple[int, int], bool], reserved: int
) -> None:
    plan = []
    for (slot, attempt), forgotten in wanted.items():
        draft = new(slot, attempt)
        draft.forgotten = forgotten
        draft.block = Unchanged(f"block/{slot}", 1)
        plan.append(draft)

    packed = list(transactions(plan, reserved=reserved))

    assert sorted(each.id for part in packed for each in part.drafts) == sorted(
        each.id for each in plan
    )
    seen: set[int] = set()
    for part in packed:
        assert len(part.conditions) + reserved <= MAX_TXN_OPS
        assert len(part.writes) <= MAX_TXN_OPS
        here = {each.task.slot for each in part.drafts}
        assert not here & seen
        seen |= here


def test_a_draft_that_changes_nothing_is_not_written() -> None:
    task = v1.Task(metadata=v1.Metadata(id="web.1.1.1"), service_id="web", slot=1)
    assert list(transactions([drafts.read(task, read_at=3)], reserved=2)) == []


def test_a_change_keeps_what_this_version_does_not_know() -> None:
    task = v1.Task(metadata=v1.Metadata(id="web.1.1.1"), service_id="web", slot=1)
    task.MergeFromString(b"\xa2\x38\x05hello")
    draft = drafts.read(task, read_at=3)

    drafts.change(draft, StopTask(TaskId("web.1.1.1"), "scaled down"), now_s=2.0, revision=9)

    assert draft.conditions == [Unchanged(keys.task("web.1.1.1"), 3)]
    (put,) = draft.writes
    assert isinstance(put, Put)
    assert b"hello" in put.value
    stored = v1.Task.FromString(put.value)
    assert stored.desired == v1.DESIRED_STATE_SHUTDOWN
    assert (stored.notes[-1].message, stored.notes[-1].revision) == ("scaled down", 9)
    assert task.desired == v1.DESIRED_STATE_UNSPECIFIED, "the message that was read is as it was"


def test_several_actions_on_one_task_are_one_write() -> None:
    draft = drafts.read(
        v1.Task(metadata=v1.Metadata(id="web.1.1.1"), service_id="web", slot=1), read_at=3
    )
    task_id = TaskId("web.1.1.1")
    for action in (MarkLost(task_id, "node n1 is down"), StopTask(task_id, "node n1 is down")):
        drafts.change(draft, action, now_s=2.0, revision=9)
    assert draft.task.HasField("lost_since")
    assert len(draft.writes) == 1
    assert len(draft.task.notes) == 1, "the same reason is noted once"

    drafts.change(draft, MarkFound(task_id, "node n1 is back"), now_s=3.0, revision=9)
    assert not draft.task.HasField("lost_since")


def test_forgetting_deletes_both_keys() -> None:
    draft = new(1)
    drafts.change(draft, ForgetTask(draft.id, "nothing is left of it"), now_s=2.0, revision=9)
    assert draft.writes == [Delete(keys.task(draft.id)), Delete(keys.task_status(draft.id))]


def test_a_task_that_fits_nowhere_says_so_once() -> None:
    draft = new(1)
    for _ in range(2):
        placement = Placement(draft.id, None, "no suitable node")
        drafts.put_in_place(draft, placement, None, now_s=2.0, revision=9)
    assert [note.message for note in draft.task.notes] == ["wanted", "no suitable node"]
    assert draft.task.metadata.generation == 2


def test_a_placed_task_compares_the_block_of_its_node() -> None:
    draft, block = new(1), Unchanged(keys.block("default", "n1"), 5)
    placement = Placement(draft.id, NodeId("n1"), "n1 is the only node that fits")
    drafts.put_in_place(draft, placement, block, now_s=2.0, revision=9)
    assert block in draft.conditions
    assert draft.task.node_id == "n1"
    assert draft.task.placement == "n1 is the only node that fits"
