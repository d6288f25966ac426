"""From messages to the model, and the small changes that are made to messages."""

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estiba import wire
from estiba.model import (
    Availability,
    DesiredState,
    Node,
    NodeId,
    NodeState,
    Resources,
    Service,
    ServiceId,
    Task,
    TaskId,
    TaskState,
)
from estiba.v1 import types_pb2 as v1


def test_a_service_is_read_as_the_orchestrator_needs_it() -> None:
    message = v1.Service(template_generation=4)
    message.metadata.id, message.metadata.name, message.metadata.revision = "s1", "web", 77
    message.spec.replicated.replicas = 3
    message.spec.placement.constraints.append("node.id == n1")
    message.spec.template.resources.reservations.memory_bytes = 1024

    assert wire.service(message) == Service(
        ServiceId("s1"), "web", 3, 4, ("node.id == n1",), Resources(0, 1024), 77
    )


def test_a_task_is_read_with_what_its_agent_said() -> None:
    message = v1.Task(service_id="s1", slot=2, template_generation=4, attempt=1, node_id="n1")
    message.desired = v1.DESIRED_STATE_SHUTDOWN
    message.metadata.id = "s1.2.4.1"
    message.lost_since.GetCurrentTime()
    message.reservations.nano_cpus = 5
    message.notes.add(message="node n1 is down")
    message.status.state, message.status.run = v1.TASK_STATE_FAILED, 3
    message.status.message = "exit code 1"
    message.status.at.FromMicroseconds(12_500_000)

    assert wire.task(message) == Task(
        id=TaskId("s1.2.4.1"),
        service_id=ServiceId("s1"),
        slot=2,
        template_generation=4,
        attempt=1,
        node_id=NodeId("n1"),
        desired=DesiredState.SHUTDOWN,
        observed=TaskState.FAILED,
        run=3,
        lost=True,
        reservations=Resources(5, 0),
        message="exit code 1",
        ended_at_s=12.5,
    )


def test_a_pending_task_carries_the_last_reason_why() -> None:
    message = v1.Task(desired=v1.DESIRED_STATE_RUNNING)
    message.notes.add(message="web wants 1 replica")
    message.notes.add(message="no suitable node: the cluster has no nodes")

    task = wire.task(message)

    assert task.node_id is None
    assert task.pending_reason == "no suitable node: the cluster has no nodes"
    assert task.ended_at_s == 0.0


def test_a_node_is_gone_since_its_status_says_so_and_only_while_it_is_not_ready() -> None:
    message = v1.Node()
    message.metadata.id, message.metadata.name = "n1", "alpha"
    message.metadata.labels["disk"] = "ssd"
    message.status.since.FromSeconds(50)
    message.status.description.nano_cpus = 8
    message.status.state = v1.NODE_STATE_DOWN

    assert wire.node(message) == Node(
        NodeId("n1"),
        "alpha",
        NodeState.DOWN,
        Availability.ACTIVE,
        {"disk": "ssd"},
        Resources(8, 0),
        50.0,
    )
    message.status.state = v1.NODE_STATE_READY
    message.spec.availability = v1.AVAILABILITY_DRAIN
    assert wire.node(message).gone_since_s == 0.0
    assert wire.node(message).availability is Availability.DRAIN


@pytest.mark.parametrize(
    ("states", "names"),
    [
        (TaskState, v1.TaskState.items()),
        (DesiredState, v1.DesiredState.items()),
        (NodeState, v1.NodeState.items()),
        (Availability, v1.Availability.items()),
    ],
)
def test_the_numbers_of_the_model_are_those_of_the_messages(
    states: type[IntEnum], names: list[tuple[str, int]]
) -> None:
    said = {number: name for name, number in names if not name.endswith("UNSPECIFIED")}

    for state in states:
        if state is not TaskState.NEW:
            assert said.pop(state.value).endswith(f"_{state.name}")
    assert said == {}


def test_a_state_of_a_later_version_counts_as_the_last_known_before_it() -> None:
    message = v1.Task.FromString(b"\x38\x90\x03\x5a\x03\x08\xa4\x02")
    assert (message.desired, message.status.state) == (400, 292)

    task = wire.task(message)

    assert task.desired is DesiredState.RUNNING
    assert task.observed is TaskState.STARTING


reports = st.builds(
    v1.TaskStatus,
    state=st.sampled_from(v1.TaskState.values()),
    run=st.integers(0, 5),
    seq=st.integers(0, 5),
)


@given(st.lists(reports, min_size=1, max_size=6), st.randoms())
def test_the_newest_report_is_the_same_in_whatever_order_they_arrive(
    said: list[v1.TaskStatus], chance: object
) -> None:
    newest = said[0]
    for report in said[1:]:
        newest = wire.newer(newest, report)
    other = said[-1]
    for report in reversed(said[:-1]):
        other = wire.newer(other, report)

    assert wire.report_order(newest) == wire.report_order(other)
    assert all(wire.report_order(report) <= wire.report_order(newest) for report in said)


def test_a_run_that_is_later_is_newer_and_a_removal_is_newest() -> None:
    first = v1.TaskStatus(state=v1.TASK_STATE_WAITING, run=1, seq=9)
    second = v1.TaskStatus(state=v1.TASK_STATE_STARTING, run=2)
    removed = v1.TaskStatus(state=v1.TASK_STATE_REMOVED)

    assert wire.newer(first, second) is second
    assert wire.newer(removed, second) is removed


def test_a_note_is_added_once_and_the_last_twenty_stay() -> None:
    task = v1.Task()
    for number in range(30):
        wire.add_note(task, f"reason {number}", now_s=float(number), revision=number)
        wire.add_note(task, f"reason {number}", now_s=99.0, revision=99)

    assert [note.message for note in task.notes] == [f"reason {number}" for number in range(10, 30)]
    assert [note.revision for note in task.notes] == list(range(10, 30))


@given(st.integers(0, 4_000_000_000_000_000))
def test_times_and_durations_keep_microseconds(microseconds: int) -> None:
    seconds = microseconds / 1_000_000

    assert wire.seconds(wire.timestamp(seconds)) == pytest.approx(seconds, abs=1e-6)
    assert wire.duration_s(wire.duration(seconds)) == pytest.approx(seconds, abs=1e-6)


def test_an_absent_time_is_zero() -> None:
    assert wire.seconds(v1.Task().lost_since) == 0.0


def test_a_note_is_cut_and_printable_so_that_many_fit_into_one_transaction() -> None:
    task = v1.Task()
    for _ in range(2):
        wire.add_note(task, "\x1b[2J" + "x" * 5000, now_s=1.0, revision=1)
    (note,) = task.notes
    assert note.message.startswith("?[2Jxxx")
    assert len(note.message) < wire.NOTE_LENGTH + 5
