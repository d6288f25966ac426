"""How fast tasks are placed: the decision alone, beside SwarmKit's figures for the same sizes.

A row decides which tasks an empty service needs, places them, and takes them into the ledger.
SwarmKit's figures, from its own benchmark on a test machine of the same kind, include commits
to its in-memory store; ours end before any store. In its rows with a constraint and with
100,000 nodes it placed each task alone, as upstream's benchmark has it.

Counted is processor time of this one thread, so that others on the machine hardly matter.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controlplane.orchestrator import CreateTask, plan_service
from controlplane.scheduler import Ledger, Request, place
from estiba.model import Node, NodeId, Resources, Service, ServiceId, Task, TaskId, TaskState
from tests.support.benchmark import Figure, tell

GIB = 1 << 30
CPU = 1_000_000_000
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Row:
    nodes: int
    tasks: int
    services: int
    constraints: tuple[str, ...] = ()
    swarmkit_per_s: int = 0

    @property
    def name(self) -> str:
        services = "1 service" if self.services == 1 else f"{self.services} services"
        limited = ", a third of the nodes" if self.constraints else ""
        return f"{self.nodes:,} nodes x {self.tasks:,} tasks, {services}{limited}"


THIRD = ("node.labels.third == yes",)
ROWS = (
    Row(1_000, 1_000, 1, swarmkit_per_s=12_000),
    Row(1_000, 10_000, 1, swarmkit_per_s=18_600),
    Row(1_000, 10_000, 100, swarmkit_per_s=17_400),
    Row(1_000, 100_000, 100, swarmkit_per_s=11_200),
    Row(5_000, 50_000, 100, swarmkit_per_s=13_900),
    Row(1_000, 1_000, 1, THIRD, swarmkit_per_s=4_100),
    Row(1_000, 10_000, 1, THIRD, swarmkit_per_s=4_400),
    Row(100_000, 1_000, 1, swarmkit_per_s=18),
)


def fleet(count: int) -> list[Node]:
    return [
        Node(
            NodeId(f"node-{index:06}"),
            f"node-{index:06}",
            labels={"third": "yes"} if index % 3 == 0 else {},
            capacity=Resources(64 * CPU, 256 * GIB),
        )
        for index in range(count)
    ]


def services(row: Row) -> list[Service]:
    each = row.tasks // row.services
    need = Resources(CPU // 100, GIB // 64)
    return [
        Service(ServiceId(f"s{index}"), f"s{index}", each, 1, row.constraints, need)
        for index in range(row.services)
    ]


def decide_and_place(row: Row, ledger: Ledger) -> tuple[float, float]:
    """Return the seconds that placing took, and all of it."""
    wanted = services(row)
    started = time.process_time()
    requests = []
    for service in wanted:
        actions = plan_service(service, [], {}, now_s=0.0).actions
        requests += [
            Request.of(service, action.task_id)
            for action in actions
            if isinstance(action, CreateTask)
        ]
    placing = time.process_time()
    placements = place(requests, ledger)
    placed = time.process_time()
    for request, placement in zip(requests, placements, strict=True):
        task = Task(
            request.task_id,
            request.service_id,
            1,
            1,
            1,
            placement.node_id,
            reservations=request.reservations,
        )
        ledger.put_task(task)
    ended = time.process_time()
    assert all(placement.node_id for placement in placements)
    return placed - placing, ended - started


def measure(row: Row) -> list[Figure]:
    nodes = fleet(row.nodes)
    placing, whole = [], []
    for _ in range(ROUNDS):
        ledger = Ledger.of(nodes)
        gc.collect()
        place_s, all_s = decide_and_place(row, ledger)
        placing.append(row.tasks / place_s)
        whole.append(row.tasks / all_s)
    peer = "SwarmKit"
    return [
        Figure(f"{row.name}: {what}", rate, "/s", rate / row.swarmkit_per_s, peer)
        for what, rate in (
            ("place", statistics.median(placing)),
            ("plan, place and promise", statistics.median(whole)),
        )
    ]


def each_ms(action: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.process_time()
        action()
        taken.append(time.process_time() - started)
    return statistics.median(taken) * 1000


def steady() -> list[Figure]:
    """Measure what costs little because little changed: 5,000 nodes that run 150,000 tasks."""
    nodes = fleet(5_000)
    by_id = {node.id: node for node in nodes}
    tasks = [_running(index, nodes) for index in range(150_000)]
    started = time.process_time()
    ledger = Ledger.of(nodes, tasks)
    built_s = time.process_time() - started
    one = Request(TaskId("s0.1.2.1"), ServiceId("s0"), "s0", THIRD, Resources(CPU, GIB))
    huge = Request(TaskId("s0.1.2.1"), ServiceId("s0"), "s0", THIRD, Resources(CPU, 999 * GIB))
    service = Service(ServiceId("s0"), "s0", 150)
    own = tasks[:150]
    return [
        Figure("5,000 nodes and 150,000 tasks: ledger from scratch", built_s, "s"),
        Figure("the same: place one task", each_ms(lambda: place([one], ledger), 50), "ms"),
        Figure(
            "the same: say why one fits nowhere", each_ms(lambda: place([huge], ledger), 50), "ms"
        ),
        Figure(
            "the same: one task's change", each_ms(lambda: ledger.put_task(tasks[7]), 500), "ms"
        ),
        Figure(
            "150 tasks that are as they should be: plan",
            each_ms(lambda: plan_service(service, own, by_id, now_s=0.0), 50),
            "ms",
        ),
    ]


def _running(index: int, nodes: Sequence[Node]) -> Task:
    service, slot = divmod(index, 150)
    return Task(
        TaskId(f"s{service}.{slot + 1}.1.1"),
        ServiceId(f"s{service}"),
        slot + 1,
        1,
        1,
        nodes[index % len(nodes)].id,
        observed=TaskState.RUNNING,
        run=1,
        ready=True,
        reservations=Resources(CPU // 100, GIB // 64),
    )


def main() -> None:
    figures = [figure for row in ROWS for figure in measure(row)]
    tell("placement", [*figures, *steady()], {"SwarmKit": "2026-08, Go 1.27, as recorded"})


if __name__ == "__main__":
    main()
