"""What a node accepts of the assignments it is offered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.assignments import Assign, Forget, Known, accept
from agent.errors import StaleError
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

RUNNING, SHUTDOWN = v1.DESIRED_STATE_RUNNING, v1.DESIRED_STATE_SHUTDOWN


def assignment(task_id: str, desired: "v1.DesiredState.ValueType" = RUNNING) -> dispatch.Assignment:
    return dispatch.Assignment(task_id=task_id, desired=desired)


def offered(
    *assignments: dispatch.Assignment,
    revision: int,
    epoch: int = 1,
    complete: bool = False,
    forget: tuple[str, ...] = (),
) -> dispatch.Assignments:
    return dispatch.Assignments(
        epoch=epoch, revision=revision, complete=complete, set=assignments, forget=forget
    )


FIRST, _ = accept(Known(), offered(assignment("a"), assignment("b"), revision=10, complete=True))


def test_a_change_touches_only_the_tasks_it_names() -> None:
    known, changes = accept(FIRST, offered(assignment("b", SHUTDOWN), revision=11))

    assert changes == [Assign(assignment("b", SHUTDOWN), 11)]
    assert set(known.tasks) == {"a", "b"}
    assert known.revision == 11


def test_what_complete_assignments_do_not_name_is_forgotten() -> None:
    known, changes = accept(
        FIRST, offered(assignment("b"), assignment("c"), revision=12, complete=True)
    )

    assert changes == [Assign(assignment("c"), 12), Forget("a")]
    assert set(known.tasks) == {"b", "c"}


def test_a_task_to_forget_is_forgotten_once() -> None:
    known, changes = accept(FIRST, offered(revision=11, forget=("a", "never heard of")))
    assert changes == [Forget("a")]

    _, changes = accept(known, offered(revision=12, forget=("a",)))
    assert changes == []


def test_an_older_revision_is_refused() -> None:
    with pytest.raises(StaleError, match="revision 9, but 10 was accepted"):
        accept(FIRST, offered(assignment("c"), revision=9, complete=True))


def test_an_older_epoch_is_refused_whatever_its_revision() -> None:
    newer, _ = accept(FIRST, offered(assignment("a"), epoch=2, revision=3, complete=True))

    with pytest.raises(StaleError, match="epoch 1, but 2 was accepted"):
        accept(newer, offered(assignment("c"), epoch=1, revision=999, complete=True))


def test_a_new_epoch_begins_with_its_complete_assignments() -> None:
    with pytest.raises(StaleError, match="before its complete assignments"):
        accept(FIRST, offered(assignment("c"), epoch=2, revision=99))

    known, changes = accept(FIRST, offered(assignment("c"), epoch=2, revision=3, complete=True))
    assert (known.epoch, known.revision, set(known.tasks)) == (2, 3, {"c"})
    assert {change.task_id for change in changes if isinstance(change, Forget)} == {"a", "b"}


def test_a_desired_state_never_falls_within_an_epoch() -> None:
    stopped, _ = accept(FIRST, offered(assignment("a", SHUTDOWN), revision=11))

    known, changes = accept(
        stopped, offered(assignment("a"), assignment("b"), revision=12, complete=True)
    )

    assert known.tasks["a"].desired == SHUTDOWN
    assert changes == []


def test_what_is_kept_on_disk_restores_the_same() -> None:
    restored, _ = accept(Known(), FIRST.message())

    assert restored == FIRST


messages = st.builds(
    lambda ids, revision, complete, forget, desired: offered(
        *(assignment(task_id, desired) for task_id in ids),
        revision=revision,
        complete=complete,
        forget=tuple(forget),
    ),
    st.sets(st.sampled_from("abcd")),
    st.integers(10, 12),
    st.booleans(),
    st.sets(st.sampled_from("efgh")),
    st.sampled_from([RUNNING, SHUTDOWN]),
)


@given(st.lists(messages, max_size=6))
def test_the_same_message_twice_changes_nothing_the_second_time(
    offers: list[dispatch.Assignments],
) -> None:
    known = FIRST
    for each in offers:
        if each.revision < known.revision:
            continue
        known, _ = accept(known, each)
        again, changes = accept(known, each)
        assert changes == []
        assert again == known


@given(st.lists(messages, max_size=6))
def test_the_changes_are_what_leads_from_before_to_after(
    offers: list[dispatch.Assignments],
) -> None:
    known = FIRST
    for each in sorted(offers, key=lambda offer: offer.revision):
        after, changes = accept(known, each)
        tasks = dict(known.tasks)
        for change in changes:
            match change:
                case Assign(changed):
                    tasks[changed.task_id] = changed
                case Forget(task_id):
                    del tasks[task_id]
        assert tasks == dict(after.tasks)
        known = after
