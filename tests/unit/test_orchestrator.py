"""Single decisions that the stories do not reach."""

from dataclasses import replace
from typing import Any

import pytest

from controlplane.orchestrator import (
    CreateTask,
    ForgetTask,
    MarkFound,
    MarkLost,
    RemoveTask,
    StopTask,
    plan_service,
    summarize,
    templates_to_delete,
)
from controlplane.orchestrator.restarts import retry_at_s
from estiba.model import (
    Availability,
    DesiredState,
    Node,
    NodeId,
    NodeState,
    Service,
    ServiceId,
    Task,
    TaskState,
    task_id,
)

NOW_S = 1_000_000.0
WEB = Service(ServiceId("s1"), "web", 1)
N1, N2 = NodeId("n1"), NodeId("n2")
NODES = {N1: Node(N1, "alpha"), N2: Node(N2, "beta")}


def task(slot: int = 1, generation: int = 1, attempt: int = 1, **changes: Any) -> Task:
    """Return a task that runs and is ready on n1."""
    running = Task(
        task_id(WEB.id, slot, generation, attempt),
        WEB.id,
        slot,
        generation,
        attempt,
        N1,
        observed=TaskState.RUNNING,
        ready=True,
    )
    return replace(running, **changes)


def ended(state: TaskState, at_s: float = NOW_S, **changes: Any) -> Task:
    return task(observed=state, ready=False, ended_at_s=at_s, **changes)


# ------------------------------------------------------------------------------- slots, lost, found


def test_of_two_tasks_in_a_slot_the_oldest_that_works_stays() -> None:
    older = task(attempt=1, ready=False, observed=TaskState.STARTING)
    younger = task(attempt=2)
    both = task(attempt=3)

    decision = plan_service(WEB, [both, older, younger], NODES, now_s=NOW_S)

    reason = f"slot 1 belongs to task {younger.id}"
    assert set(decision.actions) == {StopTask(older.id, reason), StopTask(both.id, reason)}


def test_a_lost_task_gives_way_to_its_successor_even_when_its_node_is_back() -> None:
    lost, successor = task(attempt=1, lost=True), task(attempt=2, node_id=N2)

    decision = plan_service(WEB, [lost, successor], NODES, now_s=NOW_S)

    assert decision.actions == (
        StopTask(lost.id, f"slot 1 belongs to task {successor.id}"),
        MarkFound(lost.id, "node alpha is back"),
    )


def test_a_lost_task_that_nothing_has_replaced_is_kept_when_its_node_is_back() -> None:
    lost = task(lost=True)

    decision = plan_service(WEB, [lost], NODES, now_s=NOW_S)

    assert decision.actions == (MarkFound(lost.id, "node alpha is back"),)


def test_what_stops_on_a_node_that_goes_down_holds_its_slot_no_longer() -> None:
    stopping = task(desired=DesiredState.SHUTDOWN)
    nodes = NODES | {N1: replace(NODES[N1], state=NodeState.DOWN)}

    decision = plan_service(WEB, [stopping], nodes, now_s=NOW_S)

    assert [type(action) for action in decision.actions] == [MarkLost, CreateTask]
    assert decision.actions[1].reason == "attempt 1 was lost with node alpha"


def test_an_attempt_is_numbered_above_all_that_are_known_even_forgotten_ones() -> None:
    gone = task(attempt=7, node_id=NodeId("removed"))

    decision = plan_service(WEB, [gone], NODES, now_s=NOW_S)

    assert decision.actions[0] == ForgetTask(gone.id, "node removed was removed")
    (created,) = [action for action in decision.actions if isinstance(action, CreateTask)]
    assert created.attempt == 8
    assert created.task_id == "s1.1.1.8"


def test_a_pending_task_that_is_outdated_is_replaced_in_one_plan() -> None:
    pending = task(node_id=None, observed=TaskState.NEW, ready=False)
    service = replace(WEB, template_generation=2)

    decision = plan_service(service, [pending], NODES, now_s=NOW_S)

    reason = "template 2 replaces 1"
    assert decision.actions == (
        ForgetTask(pending.id, reason),
        CreateTask(task_id(WEB.id, 1, 2, 1), WEB.id, 1, 2, 1, reason),
    )


def test_a_task_told_to_be_ready_only_is_wanted() -> None:
    prepared = task(desired=DesiredState.READY, observed=TaskState.READY, ready=False)

    assert plan_service(WEB, [prepared], NODES, now_s=NOW_S).actions == ()


def test_a_constraint_that_cannot_be_read_moves_nothing() -> None:
    service = replace(WEB, constraints=("node.zone in a,b",))

    assert plan_service(service, [task()], NODES, now_s=NOW_S).actions == ()


def test_a_drained_node_keeps_its_last_task_while_another_replica_is_not_ready() -> None:
    service = replace(WEB, replicas=2)
    nodes = NODES | {N1: replace(NODES[N1], availability=Availability.DRAIN)}
    waiting = task(slot=2, node_id=N2, observed=TaskState.WAITING, ready=False)

    assert plan_service(service, [task(), waiting], nodes, now_s=NOW_S).actions == ()


# ---------------------------------------------------------------------------------------- retrying


@pytest.mark.parametrize(
    ("failures", "delay_s"), [(1, 1), (2, 2), (3, 4), (4, 8), (6, 32), (7, 60), (500, 60)]
)
def test_delays_between_attempts_grow_to_a_minute(failures: int, delay_s: float) -> None:
    kept = [
        ended(TaskState.REJECTED, attempt=attempt)
        for attempt in range(failures, max(failures - 4, 0), -1)
    ]

    assert retry_at_s(kept) == NOW_S + delay_s


@pytest.mark.parametrize("state", [TaskState.REJECTED, TaskState.FAILED, TaskState.COMPLETE])
def test_a_task_that_ended_by_itself_is_replaced_after_a_delay(state: TaskState) -> None:
    over = ended(state, at_s=NOW_S - 0.25, message="no such device")

    waits = plan_service(WEB, [over], NODES, now_s=NOW_S)
    then = plan_service(WEB, [over], NODES, now_s=NOW_S + 0.75)

    assert waits.actions == ()
    assert waits.wake_after_s == pytest.approx(0.75)
    (created,) = then.actions
    assert created.reason == f"attempt 1 ended {state.name.lower()}: no such device"


def test_an_agent_that_stops_a_task_unasked_is_not_asked_again_at_once() -> None:
    over = ended(TaskState.SHUTDOWN, at_s=NOW_S)

    decision = plan_service(WEB, [over], NODES, now_s=NOW_S)

    assert decision.actions == ()
    assert decision.wake_after_s == 1.0


def test_a_stop_that_was_asked_for_ends_a_streak_of_failures() -> None:
    history = [
        ended(TaskState.REJECTED, attempt=1),
        ended(TaskState.SHUTDOWN, attempt=2, desired=DesiredState.SHUTDOWN),
        ended(TaskState.REJECTED, attempt=3),
    ]

    assert plan_service(WEB, history, NODES, now_s=NOW_S).wake_after_s == 1.0
    assert plan_service(WEB, history[:2], NODES, now_s=NOW_S).wake_after_s is None


def test_only_nodes_that_refused_are_avoided() -> None:
    history = [
        ended(TaskState.FAILED, attempt=1, node_id=N2),
        ended(TaskState.REJECTED, attempt=2, node_id=N1),
    ]

    decision = plan_service(WEB, history, NODES, now_s=NOW_S + 60)

    (created,) = decision.actions
    assert isinstance(created, CreateTask)
    assert created.avoid == {N1}


# ----------------------------------------------------------------------------------------- reaping


def test_the_history_of_a_slot_above_the_replicas_ends_after_an_hour() -> None:
    service = replace(WEB, replicas=0)
    stopped = [
        ended(TaskState.SHUTDOWN, at_s=NOW_S - age, attempt=attempt, desired=DesiredState.SHUTDOWN)
        for attempt, age in ((1, 3000), (2, 2000))
    ]

    decision = plan_service(service, stopped, NODES, now_s=NOW_S)
    later = plan_service(service, stopped[1:], NODES, now_s=NOW_S + 1600)

    assert [action.task_id for action in decision.actions] == [stopped[0].id]
    assert decision.wake_after_s == 1600.0
    assert [type(action) for action in later.actions] == [RemoveTask]


def test_the_last_ten_templates_are_kept_and_those_that_tasks_refer_to() -> None:
    generations = range(1, 16)

    assert templates_to_delete(generations, [task(generation=2)], 15) == [1, 3, 4, 5]


def test_of_a_deleted_service_only_templates_of_its_last_tasks_are_kept() -> None:
    assert templates_to_delete([1, 2, 3], [task(generation=2)], None) == [1, 3]
    assert templates_to_delete([1, 2, 3], [], None) == [1, 2, 3]


# ----------------------------------------------------------------------------------------- summary


def test_the_complaint_of_most_slots_is_told_with_their_number() -> None:
    service = replace(WEB, replicas=4)
    tasks = [
        task(slot=1),
        task(slot=2, observed=TaskState.WAITING, ready=False, message="exit code 1"),
        task(slot=3, node_id=None, observed=TaskState.NEW, ready=False, pending_reason="no room"),
        task(slot=4, node_id=None, observed=TaskState.NEW, ready=False, pending_reason="no room"),
    ]

    summary = summarize(service, tasks, NODES)

    assert (summary.desired, summary.running, summary.updated) == (4, 1, 1)
    assert not summary.converged
    assert summary.message == "web.3 and 1 more: no room"


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ([], "0 of 1 replicas run as wanted"),
        ([task(generation=3)], "0 of 1 replicas run as wanted"),
        ([task(), task(slot=2, desired=DesiredState.SHUTDOWN)], "1 task is still stopping"),
        ([ended(TaskState.REJECTED)], "web.1: ended rejected"),
        (
            [task(observed=TaskState.WAITING, ready=False)],
            "web.1: waiting to be started again",
        ),
    ],
)
def test_a_service_that_has_not_converged_says_what_is_missing(
    now: list[Task], message: str
) -> None:
    summary = summarize(WEB, now, NODES)

    assert not summary.converged
    assert summary.message == message


def test_replicas_that_run_where_they_should_not_are_not_up_to_date() -> None:
    drained = NODES | {N1: replace(NODES[N1], availability=Availability.DRAIN)}

    assert summarize(WEB, [task()], NODES).converged
    assert summarize(WEB, [task()], drained).updated == 0
    assert not summarize(WEB, [task()], drained).converged


def test_what_a_lost_node_has_neither_counts_nor_stands_in_the_way() -> None:
    lost = task(attempt=1, lost=True, desired=DesiredState.SHUTDOWN)

    summary = summarize(WEB, [lost, task(attempt=2, node_id=N2)], NODES)

    assert (summary.running, summary.converged) == (1, True)


def test_a_service_of_no_replicas_has_converged_when_nothing_is_left_running() -> None:
    none = replace(WEB, replicas=0)

    assert summarize(none, [], NODES).converged
    assert not summarize(none, [task(desired=DesiredState.SHUTDOWN)], NODES).converged


def test_a_node_may_be_unknown_for_as_long_as_is_said() -> None:
    nodes = {N1: replace(NODES[N1], state=NodeState.UNKNOWN, gone_since_s=NOW_S - 50)}

    assert plan_service(WEB, [task()], nodes, now_s=NOW_S, grace_s=60).wake_after_s == 10
    decision = plan_service(WEB, [task()], nodes, now_s=NOW_S, grace_s=40)
    assert "unknown for more than 40 s" in decision.actions[0].reason
