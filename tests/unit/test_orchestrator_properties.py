"""What holds of every plan, whatever the tasks and nodes were before."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.orchestrator import (
    CreateTask,
    ForgetTask,
    RemoveTask,
    StopTask,
    plan_service,
    summarize,
)
from controlplane.orchestrator.lost import UNKNOWN_GRACE_S
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
from tests.support.plans import carry_out

NOW_S = 1_000_000.0
WEB = ServiceId("web")
NODE_IDS = [NodeId(f"n{index}") for index in range(1, 5)]


@st.composite
def one_task(draw: st.DrawFn) -> Task:
    slot, generation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    attempt = draw(st.integers(1, 4))
    node_id = draw(st.sampled_from([None, *NODE_IDS]))
    observed = draw(st.sampled_from(TaskState)) if node_id else TaskState.NEW
    return Task(
        id=task_id(WEB, slot, generation, attempt),
        service_id=WEB,
        slot=slot,
        template_generation=generation,
        attempt=attempt,
        node_id=node_id,
        desired=draw(st.sampled_from(DesiredState)),
        observed=observed,
        ready=observed is TaskState.RUNNING and draw(st.booleans()),
        lost=node_id is not None and draw(st.booleans()),
        ended_at_s=NOW_S - draw(st.floats(0, 5000)) if observed.ended else 0.0,
    )


@st.composite
def some_nodes(draw: st.DrawFn) -> dict[NodeId, Node]:
    nodes = {}
    for node_id in draw(st.lists(st.sampled_from(NODE_IDS), unique=True)):
        state = draw(st.sampled_from(NodeState))
        gone_s = draw(st.floats(0, 20)) if state is not NodeState.READY else NOW_S
        nodes[node_id] = Node(
            node_id,
            hostname=str(node_id),
            state=state,
            availability=draw(st.sampled_from(Availability)),
            labels=draw(st.sampled_from([{}, {"disk": "ssd"}])),
            gone_since_s=NOW_S - gone_s,
        )
    return nodes


tasks = st.lists(one_task(), max_size=12, unique_by=lambda task: task.id)
services = st.builds(
    Service,
    id=st.just(WEB),
    name=st.just("web"),
    replicas=st.integers(0, 5),
    template_generation=st.integers(1, 3),
    constraints=st.sampled_from([(), ("node.labels.disk == ssd",)]),
)


def serves(task: Task, nodes: dict[NodeId, Node]) -> bool:
    node = nodes.get(task.node_id) if task.node_id else None
    return (
        task.wanted
        and task.ready
        and not task.lost
        and node is not None
        and node.state is NodeState.READY
    )


@settings(max_examples=250)
@given(st.none() | services, tasks, some_nodes())
def test_one_plan_is_enough(
    service: Service | None, before: list[Task], nodes: dict[NodeId, Node]
) -> None:
    decision = plan_service(service, before, nodes, now_s=NOW_S)
    after = carry_out(decision.actions, before)

    again = plan_service(service, after, nodes, now_s=NOW_S)

    assert again.actions == ()
    assert again.wake_after_s is None or again.wake_after_s > 0


@settings(max_examples=250)
@given(services, tasks, some_nodes())
def test_no_slot_is_twice_wanted_and_none_beyond_the_replicas(
    service: Service, before: list[Task], nodes: dict[NodeId, Node]
) -> None:
    after = carry_out(plan_service(service, before, nodes, now_s=NOW_S).actions, before)

    held = Counter(task.slot for task in after if task.wanted)
    assert all(count == 1 for count in held.values())
    assert all(1 <= slot <= service.replicas for slot in held)


@settings(max_examples=250)
@given(services, tasks, some_nodes())
def test_a_vacant_slot_is_filled_now_or_at_the_wake_up_or_when_its_last_task_has_stopped(
    service: Service, before: list[Task], nodes: dict[NodeId, Node]
) -> None:
    decision = plan_service(service, before, nodes, now_s=NOW_S)
    after = carry_out(decision.actions, before)

    for slot in range(1, service.replicas + 1):
        occupants = [task for task in after if task.slot == slot]
        wanted = any(task.wanted for task in occupants)
        stopping = any(task.holds_resources and not task.lost for task in occupants)
        assert wanted or stopping or decision.wake_after_s is not None


@settings(max_examples=250)
@given(services, tasks, some_nodes())
def test_no_task_is_stopped_without_cause(
    service: Service, before: list[Task], nodes: dict[NodeId, Node]
) -> None:
    by_id = {task.id: task for task in before}
    shared = Counter(task.slot for task in before if task.wanted)
    for action in plan_service(service, before, nodes, now_s=NOW_S).actions:
        if not isinstance(action, StopTask | ForgetTask) or not by_id[action.task_id].wanted:
            continue
        task = by_id[action.task_id]
        node = nodes.get(task.node_id) if task.node_id else None
        causes = {
            "surplus": not 1 <= task.slot <= service.replicas,
            "duplicate": shared[task.slot] > 1,
            "outdated": task.template_generation != service.template_generation,
            "node removed": task.node_id is not None and node is None,
            "node gone": node is not None
            and (
                node.state is NodeState.DOWN
                or (node.state is NodeState.UNKNOWN and task.lost)
                or (
                    node.state is NodeState.UNKNOWN and NOW_S - node.gone_since_s >= UNKNOWN_GRACE_S
                )
            ),
            "drained": node is not None and node.availability is Availability.DRAIN,
            "misplaced": node is not None
            and bool(service.constraints)
            and node.labels.get("disk") != "ssd",
        }
        assert any(causes.values()), (action, task)


@settings(max_examples=250)
@given(services, tasks, some_nodes())
def test_a_plan_takes_down_at_most_one_slot_that_serves_and_only_if_all_do(
    service: Service, before: list[Task], nodes: dict[NodeId, Node]
) -> None:
    after = carry_out(plan_service(service, before, nodes, now_s=NOW_S).actions, before)

    wanted = range(1, service.replicas + 1)
    up_before = {task.slot for task in before if serves(task, nodes)} & set(wanted)
    up_after = {task.slot for task in after if serves(task, nodes)}
    given_up = up_before - up_after
    assert len(given_up) <= 1
    assert not given_up or up_before == set(wanted)


@settings(max_examples=200)
@given(services, tasks, some_nodes())
def test_only_what_left_nothing_behind_is_forgotten(
    service: Service, before: list[Task], nodes: dict[NodeId, Node]
) -> None:
    by_id = {task.id: task for task in before}
    for action in plan_service(service, before, nodes, now_s=NOW_S).actions:
        if isinstance(action, ForgetTask):
            task = by_id[action.task_id]
            gone = task.node_id is None or task.node_id not in nodes
            assert gone or task.observed is TaskState.REMOVED


@settings(max_examples=200)
@given(services, tasks, some_nodes())
def test_only_ended_tasks_of_a_living_service_are_removed(
    service: Service, before: list[Task], nodes: dict[NodeId, Node]
) -> None:
    by_id = {task.id: task for task in before}
    for action in plan_service(service, before, nodes, now_s=NOW_S).actions:
        if isinstance(action, RemoveTask):
            assert by_id[action.task_id].observed.ended


@given(tasks, some_nodes())
def test_a_deleted_service_creates_and_keeps_nothing(
    before: list[Task], nodes: dict[NodeId, Node]
) -> None:
    decision = plan_service(None, before, nodes, now_s=NOW_S)

    assert not any(isinstance(action, CreateTask | StopTask) for action in decision.actions)
    after = carry_out(decision.actions, before)
    assert all(task.desired is DesiredState.REMOVE for task in after)
    gone = [replace(task, observed=TaskState.REMOVED) for task in after]
    assert carry_out(plan_service(None, gone, nodes, now_s=NOW_S).actions, gone) == []


@settings(max_examples=200)
@given(services, st.dictionaries(st.sampled_from(NODE_IDS), st.just(0), min_size=1))
def test_a_converged_service_needs_nothing(service: Service, on: dict[NodeId, int]) -> None:
    nodes = {node_id: Node(node_id, str(node_id), labels={"disk": "ssd"}) for node_id in on}
    where = sorted(nodes)
    running = [
        Task(
            id=task_id(WEB, slot, service.template_generation, 1),
            service_id=WEB,
            slot=slot,
            template_generation=service.template_generation,
            attempt=1,
            node_id=where[slot % len(where)],
            observed=TaskState.RUNNING,
            ready=True,
        )
        for slot in range(1, service.replicas + 1)
    ]

    decision = plan_service(service, running, nodes, now_s=NOW_S)

    assert decision.actions == ()
    assert decision.wake_after_s is None
    assert summarize(service, running, nodes).converged


@settings(max_examples=200)
@given(services, tasks, some_nodes())
def test_a_summary_that_is_not_converged_says_why(
    service: Service, now: list[Task], nodes: dict[NodeId, Node]
) -> None:
    summary = summarize(service, now, nodes)

    assert summary.converged == (summary.message == "")
    assert summary.updated <= summary.running
