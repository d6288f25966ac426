"""The domain's values: what is wanted, what holds resources, how things are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estiba.model import (
    Availability,
    DesiredState,
    Node,
    NodeId,
    NodeState,
    Resources,
    ServiceId,
    Task,
    TaskId,
    TaskState,
    task_id,
    task_name,
)


def task(desired: DesiredState, observed: TaskState, node_id: NodeId | None) -> Task:
    return Task(TaskId("web.1.1.1"), ServiceId("web"), 1, 1, 1, node_id, desired, observed)


@pytest.mark.parametrize(
    ("desired", "observed", "wanted"),
    [
        (DesiredState.RUNNING, TaskState.NEW, True),
        (DesiredState.READY, TaskState.READY, True),
        (DesiredState.RUNNING, TaskState.WAITING, True),
        (DesiredState.RUNNING, TaskState.COMPLETE, False),
        (DesiredState.RUNNING, TaskState.REJECTED, False),
        (DesiredState.SHUTDOWN, TaskState.RUNNING, False),
        (DesiredState.REMOVE, TaskState.RUNNING, False),
    ],
)
def test_a_task_is_wanted_while_it_may_run_and_should(
    desired: DesiredState, observed: TaskState, wanted: bool
) -> None:
    assert task(desired, observed, NodeId("n1")).wanted is wanted


def test_a_task_holds_resources_from_its_placement_to_its_end() -> None:
    node = NodeId("n1")

    assert not task(DesiredState.RUNNING, TaskState.NEW, None).holds_resources
    assert task(DesiredState.RUNNING, TaskState.NEW, node).holds_resources
    assert task(DesiredState.SHUTDOWN, TaskState.RUNNING, node).holds_resources
    assert not task(DesiredState.SHUTDOWN, TaskState.SHUTDOWN, node).holds_resources


def test_only_a_ready_and_active_node_takes_tasks() -> None:
    taking = [
        (state, availability)
        for state in NodeState
        for availability in Availability
        if Node(NodeId("n1"), "n1", state, availability).takes_tasks
    ]

    assert taking == [(NodeState.READY, Availability.ACTIVE)]


amounts = st.builds(Resources, st.integers(), st.integers())


@given(amounts, amounts)
def test_what_is_added_can_be_taken_away(one: Resources, other: Resources) -> None:
    assert one + other - other == one


def test_names_say_where_a_task_belongs() -> None:
    assert task_id(ServiceId("s1"), 2, 3, 4) == "s1.2.3.4"
    assert task_name("web", 2) == "web.2"
