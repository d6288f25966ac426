"""Where tasks go: never over capacity, spread, explained, the same way each time."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.scheduler import Ledger, Placement, Request, place, satisfies
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

GIB = 1 << 30
CPU = 1_000_000_000


NOTHING = Resources()


def node(name: str, **changes: Any) -> Node:
    plain = Node(NodeId(name), name, capacity=Resources(4 * CPU, 8 * GIB))
    return replace(plain, **changes)


def requests(
    count: int, *, of: str = "web", need: Resources = NOTHING, musts: tuple[str, ...] = ()
) -> list[Request]:
    return [
        Request(TaskId(f"{of}.{slot}.1.1"), ServiceId(of), of, musts, need)
        for slot in range(1, count + 1)
    ]


def held(name: str, node_id: str, *, of: str = "web", need: Resources = NOTHING) -> Task:
    return Task(
        TaskId(name),
        ServiceId(of),
        1,
        1,
        1,
        NodeId(node_id),
        reservations=need,
        observed=TaskState.RUNNING,
    )


def reason(placements: list[Placement]) -> str:
    assert all(placement.node_id is None for placement in placements)
    (only,) = {placement.reason for placement in placements}
    return only


# ------------------------------------------------------------------------------------- properties

amounts = st.builds(Resources, st.integers(0, 4), st.integers(0, 4))
nodes = st.lists(
    st.builds(
        Node,
        id=st.sampled_from([NodeId(f"n{index}") for index in range(8)]),
        hostname=st.just(""),
        state=st.sampled_from([NodeState.READY] * 4 + [NodeState.DOWN, NodeState.UNKNOWN]),
        availability=st.sampled_from([Availability.ACTIVE] * 4 + [Availability.DRAIN]),
        labels=st.sampled_from([{}, {"disk": "ssd"}]),
        capacity=st.builds(Resources, st.integers(0, 12), st.integers(0, 12)),
    ),
    max_size=8,
    unique_by=lambda node: node.id,
)
tasks = st.lists(
    st.builds(
        Task,
        id=st.integers(0, 30).map(lambda number: TaskId(f"old.{number}")),
        service_id=st.sampled_from([ServiceId("a"), ServiceId("b")]),
        slot=st.just(1),
        template_generation=st.just(1),
        attempt=st.just(1),
        node_id=st.sampled_from([None, *(NodeId(f"n{index}") for index in range(8))]),
        desired=st.sampled_from(DesiredState),
        observed=st.sampled_from(TaskState),
        reservations=amounts,
    ),
    max_size=12,
    unique_by=lambda task: task.id,
)
kinds = st.tuples(
    st.sampled_from([ServiceId("a"), ServiceId("b"), ServiceId("c")]),
    st.sampled_from([(), ("node.labels.disk == ssd",), ("node.id != n1", "node.id != n2")]),
    amounts,
    st.sampled_from([frozenset[NodeId](), frozenset({NodeId("n0"), NodeId("n3")})]),
)
asked = st.lists(kinds, max_size=25).map(
    lambda each: [
        Request(TaskId(f"new.{number}"), service_id, str(service_id), musts, need, avoid)
        for number, (service_id, musts, need, avoid) in enumerate(each)
    ]
)


def one_by_one(request: Request, nodes: list[Node], tasks: list[Task]) -> NodeId | None:
    """Place one task as the rules say, in the plainest way."""

    def free(node: Node) -> Resources:
        here = (task for task in tasks if task.node_id == node.id and task.holds_resources)
        return sum((Resources() - task.reservations for task in here), node.capacity)

    def fits(node: Node) -> bool:
        left, need = free(node), request.reservations
        return (
            node.takes_tasks
            and satisfies(node, request.constraints)
            and (need.nano_cpus == 0 or left.nano_cpus >= need.nano_cpus)
            and (need.memory_bytes == 0 or left.memory_bytes >= need.memory_bytes)
        )

    def rank(node: Node) -> tuple[bool, int, int, str]:
        here = [task for task in tasks if task.node_id == node.id and task.wanted]
        own = [task for task in here if task.service_id == request.service_id]
        return node.id in request.avoid, len(own), len(here), node.id

    best = min(filter(fits, nodes), key=rank, default=None)
    return None if best is None else best.id


@settings(max_examples=300)
@given(st.lists(kinds, min_size=1, max_size=1), st.integers(1, 40), nodes, tasks)
def test_a_group_is_placed_as_if_one_by_one(
    kind: list[tuple[ServiceId, tuple[str, ...], Resources, frozenset[NodeId]]],
    count: int,
    nodes: list[Node],
    tasks: list[Task],
) -> None:
    service_id, musts, need, avoid = kind[0]
    group = [
        Request(TaskId(f"new.{number}"), service_id, "web", musts, need, avoid)
        for number in range(count)
    ]
    expected = []
    known = list(tasks)
    for request in group:
        node_id = one_by_one(request, nodes, known)
        expected.append(node_id)
        known.append(Task(request.task_id, service_id, 1, 1, 1, node_id, reservations=need))

    placements = place(group, Ledger.of(nodes, tasks))

    assert [placement.node_id for placement in placements] == expected


@settings(max_examples=300)
@given(asked, nodes, tasks)
def test_no_node_is_filled_over_its_capacity_and_every_answer_has_a_reason(
    asked: list[Request], nodes: list[Node], tasks: list[Task]
) -> None:
    by_id = {node.id: node for node in nodes}
    free = {node.id: node.capacity for node in nodes}
    for task in tasks:
        if task.holds_resources and task.node_id in free:
            free[task.node_id] -= task.reservations

    placements = place(asked, Ledger.of(nodes, tasks))

    assert [placement.task_id for placement in placements] == [each.task_id for each in asked]
    for request, placement in zip(asked, placements, strict=True):
        assert placement.reason
        if placement.node_id is None:
            assert placement.reason.startswith("no suitable node: ")
            continue
        chosen = by_id[placement.node_id]
        assert chosen.takes_tasks
        assert satisfies(chosen, request.constraints)
        free[chosen.id] -= request.reservations
        if request.reservations.nano_cpus:
            assert free[chosen.id].nano_cpus >= 0
        if request.reservations.memory_bytes:
            assert free[chosen.id].memory_bytes >= 0


@settings(max_examples=300)
@given(asked, nodes, tasks)
def test_a_task_stays_pending_only_if_it_still_fits_nowhere(
    asked: list[Request], nodes: list[Node], tasks: list[Task]
) -> None:
    placements = place(asked, Ledger.of(nodes, tasks))
    after = [*tasks]
    for request, placement in zip(asked, placements, strict=True):
        after.append(
            Task(
                request.task_id,
                request.service_id,
                1,
                1,
                1,
                placement.node_id,
                reservations=request.reservations,
            )
        )

    for request, placement in zip(asked, placements, strict=True):
        if placement.node_id is None:
            assert one_by_one(request, nodes, after) is None


@settings(max_examples=200)
@given(st.lists(nodes, max_size=4), st.lists(tasks, max_size=4), asked, st.data())
def test_a_ledger_told_of_changes_equals_one_built_from_scratch(
    node_lists: list[list[Node]],
    task_lists: list[list[Task]],
    asked: list[Request],
    data: st.DataObject,
) -> None:
    ledger = Ledger()
    now_nodes: dict[NodeId, Node] = {}
    now_tasks: dict[TaskId, Task] = {}
    changes: list[Node | Task] = [item for each in node_lists for item in each]
    changes += [item for each in task_lists for item in each]
    for item in data.draw(st.permutations(changes)):
        gone = data.draw(st.booleans())
        if isinstance(item, Node):
            ledger.put_node(item)
            now_nodes[item.id] = item
            if gone:
                ledger.drop_node(item.id)
                del now_nodes[item.id]
        else:
            ledger.put_task(item)
            now_tasks[item.id] = item
            if gone:
                ledger.drop_task(item.id)
                del now_tasks[item.id]
        place(asked, ledger)

    assert place(asked, ledger) == place(asked, Ledger.of(now_nodes.values(), now_tasks.values()))


# --------------------------------------------------------------------------------------- examples


def test_tasks_spread_by_their_service_first_and_then_by_all() -> None:
    ledger = Ledger.of(
        [node("n1"), node("n2"), node("n3")],
        [held("web.9", "n1"), held("db.1", "n2", of="db"), held("db.2", "n2", of="db")],
    )

    placements = place(requests(4), ledger)

    assert [placement.node_id for placement in placements] == ["n3", "n2", "n1", "n3"]


def test_ties_are_broken_by_id_whatever_the_order_nodes_came_in() -> None:
    names = ["n3", "n1", "n2"]

    placements = place(requests(3), Ledger.of([node(name) for name in names]))

    assert [placement.node_id for placement in placements] == ["n1", "n2", "n3"]


def test_a_placement_says_why_this_node() -> None:
    ledger = Ledger.of([node("n1"), node("n2"), node("n3")], [held("web.9", "n1")])

    (first,) = place(requests(1), ledger)

    assert first.reason == "n2 has the fewest tasks of web (0) among 3 nodes that fit"


def test_the_last_node_with_room_is_called_the_only_one() -> None:
    tight = Resources(0, 3 * GIB)
    ledger = Ledger.of([node("n1"), node("n2", capacity=Resources(CPU, 3 * GIB))])

    placements = place(requests(3, need=tight), ledger)

    assert [placement.reason for placement in placements] == [
        "n1 has the fewest tasks of web (0) among 2 nodes that fit",
        "n2 has the fewest tasks of web (0) among 2 nodes that fit",
        "n1 is the only node that fits",
    ]


def test_a_node_that_refused_is_taken_only_if_no_other_fits() -> None:
    ledger = Ledger.of([node("n1"), node("n2")], [held("web.8", "n2"), held("web.9", "n2")])
    plain = requests(1)[0]
    refused = replace(plain, avoid=frozenset({NodeId("n1")}))
    stubborn = replace(plain, avoid=frozenset({NodeId("n1"), NodeId("n2"), NodeId("gone")}))

    assert place([plain], ledger)[0].node_id == "n1"
    assert place([refused], ledger)[0].node_id == "n2"
    last = place([stubborn], ledger)[0]
    assert last.node_id == "n1"
    assert last.reason.endswith("among 2 nodes that fit, though it refused an earlier attempt")


def test_a_cluster_without_nodes_says_so() -> None:
    assert reason(place(requests(2), Ledger())) == "no suitable node: the cluster has no nodes"


def test_a_pending_task_is_told_which_filter_refused_how_many_nodes() -> None:
    ledger = Ledger.of(
        [
            node("n1", labels={"disk": "ssd"}),
            node("n2", labels={"disk": "ssd"}),
            node("n3", labels={"disk": "hdd"}),
        ],
        [
            held("db.1", "n1", of="db", need=Resources(0, 7 * GIB)),
            held("db.2", "n2", of="db", need=Resources(0, 5 * GIB + GIB * 9 // 10)),
        ],
    )

    said = reason(
        place(requests(2, need=Resources(0, 8 * GIB), musts=("node.labels.disk == ssd",)), ledger)
    )

    assert said == (
        "no suitable node: 2 of 3 nodes lack memory (need 8 GiB free, most free 2.1 GiB on n2); "
        "1 of 3 nodes does not match node.labels.disk == ssd"
    )


def test_each_node_counts_at_the_first_filter_it_fails() -> None:
    ledger = Ledger.of(
        [
            node("n1", state=NodeState.DOWN),
            node("n2", state=NodeState.UNKNOWN),
            node("n3", availability=Availability.PAUSE),
            node("n4", availability=Availability.DRAIN),
            node("n5", capacity=Resources(CPU // 2, 0)),
            node("n6", capacity=Resources(2 * CPU, 0)),
        ]
    )

    said = reason(place(requests(1, need=Resources(CPU, GIB)), ledger))

    assert said == (
        "no suitable node: 1 of 6 nodes is down; 1 of 6 nodes is unknown; 1 of 6 nodes is paused; "
        "1 of 6 nodes is drained; 1 of 6 nodes lacks cpus (need 1 cpu free, most free 0.5 cpus "
        "on n5); 1 of 6 nodes lacks memory (need 1 GiB free, most free 0 bytes on n6)"
    )


def test_a_single_node_is_spoken_of_in_the_singular() -> None:
    ledger = Ledger.of([node("n1", availability=Availability.DRAIN)])

    assert reason(place(requests(1), ledger)) == "no suitable node: 1 of 1 node is drained"


def test_what_a_group_takes_is_not_given_to_the_next() -> None:
    ledger = Ledger.of([node("n1"), node("n2")])
    need = Resources(3 * CPU, 0)

    placements = place([*requests(2, of="a", need=need), *requests(1, of="b", need=need)], ledger)

    assert [placement.node_id for placement in placements] == ["n1", "n2", None]
    assert "lack cpus (need 3 cpus free, most free 1 cpu on n1)" in placements[2].reason


def test_placing_promises_nothing_in_the_ledger() -> None:
    ledger = Ledger.of([node("n1")])
    need = requests(1, need=Resources(4 * CPU, 0))

    assert place(need, ledger) == place(need, ledger)


def test_a_stopping_task_holds_its_resources_and_does_not_count_in_the_spread() -> None:
    stopping = replace(
        held("web.9", "n1", need=Resources(4 * CPU, 0)), desired=DesiredState.SHUTDOWN
    )
    ledger = Ledger.of([node("n1"), node("n2")], [stopping, held("web.8", "n2")])

    assert place(requests(1), ledger)[0].node_id == "n1"
    assert place(requests(1, need=Resources(CPU, 0)), ledger)[0].node_id == "n2"
    ledger.put_task(replace(stopping, observed=TaskState.SHUTDOWN))
    assert place(requests(1, need=Resources(CPU, 0)), ledger)[0].node_id == "n1"


def test_a_node_that_is_dropped_takes_nothing_and_its_row_is_used_again() -> None:
    ledger = Ledger.of([node("n1"), node("n2")], [held("web.1", "n1")])
    ledger.drop_node(NodeId("n1"))
    ledger.drop_task(TaskId("web.1"))

    assert {each.node_id for each in place(requests(4), ledger)} == {"n2"}
    assert ledger.row_of(NodeId("n1")) is None
    ledger.put_node(node("n0"))
    assert Counter(each.node_id for each in place(requests(4), ledger)) == {"n0": 2, "n2": 2}


def test_a_label_that_changes_counts_at_once() -> None:
    ledger = Ledger.of([node(f"n{index}") for index in range(100)])
    musts = ("node.labels.disk == ssd",)
    assert reason(place(requests(1, musts=musts), ledger)).startswith(
        "no suitable node: 100 of 100"
    )

    ledger.put_node(node("n42", labels={"disk": "ssd"}))

    assert place(requests(1, musts=musts), ledger)[0].node_id == "n42"


@pytest.mark.parametrize("text", ["node.zone in a", "nonsense"])
def test_a_constraint_that_cannot_be_read_matches_no_node(text: str) -> None:
    said = reason(place(requests(1, musts=(text,)), Ledger.of([node("n1"), node("n2")])))

    assert said == f"no suitable node: 2 of 2 nodes do not match {text}"


def test_a_request_is_made_from_the_service_as_it_is_now() -> None:
    service = Service(ServiceId("s"), "web", 2, 3, ("node.id == n1",), Resources(1, 2))

    request = Request.of(service, TaskId("s.1.3.1"))

    assert request == Request(
        TaskId("s.1.3.1"), ServiceId("s"), "web", ("node.id == n1",), Resources(1, 2)
    )
