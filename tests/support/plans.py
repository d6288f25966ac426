"""A world for the deciding code: plans carried out in memory, and agents that do as told.

`carry_out` applies a plan as the loops do, and refuses what a store would refuse. `World` adds
nodes, agents and a clock that moves when told to, for stories and for properties.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from controlplane.orchestrator import (
    Action,
    CreateTask,
    Decision,
    ForgetTask,
    MarkFound,
    MarkLost,
    RemoveTask,
    StopTask,
    plan_service,
)
from controlplane.scheduler import Ledger, Placement, Request, place
from estiba.model import (
    DesiredState,
    Node,
    NodeId,
    NodeState,
    Service,
    Task,
    TaskId,
    TaskState,
)


def carry_out(actions: Iterable[Action], tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks after the plan; whatever contradicts them is an error."""
    after = {task.id: task for task in tasks}
    for action in actions:
        assert action.reason, action
        if isinstance(action, CreateTask):
            assert action.task_id not in after, f"{action.task_id} exists"
            after[action.task_id] = Task(
                id=action.task_id,
                service_id=action.service_id,
                slot=action.slot,
                template_generation=action.template_generation,
                attempt=action.attempt,
            )
            continue
        task = after.pop(action.task_id)
        match action:
            case StopTask():
                assert task.desired < DesiredState.SHUTDOWN, action
                after[task.id] = replace(task, desired=DesiredState.SHUTDOWN)
            case RemoveTask():
                assert task.desired < DesiredState.REMOVE, action
                after[task.id] = replace(task, desired=DesiredState.REMOVE)
            case MarkLost():
                assert not task.lost, action
                after[task.id] = replace(task, lost=True)
            case MarkFound():
                assert task.lost, action
                after[task.id] = replace(task, lost=False)
            case ForgetTask():
                pass
    return list(after.values())


@dataclass
class World:
    """One service, its tasks, its nodes, and what their agents would do."""

    service: Service | None = None
    tasks: dict[TaskId, Task] = field(default_factory=dict)
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    now_s: float = 1_000_000.0
    broken: set[int] = field(default_factory=set)
    """Template generations whose containers do not stay up."""
    refusing: set[NodeId] = field(default_factory=set)
    """Nodes whose agents refuse every task."""
    silent: set[NodeId] = field(default_factory=set)
    """Nodes whose agents do nothing just now."""

    def plan(self) -> tuple[Decision, list[Placement]]:
        """Decide, place, and commit both: one round of the planner."""
        decision = plan_service(
            self.service, list(self.tasks.values()), self.nodes, now_s=self.now_s
        )
        after = {task.id: task for task in carry_out(decision.actions, list(self.tasks.values()))}
        avoid = {a.task_id: a.avoid for a in decision.actions if isinstance(a, CreateTask)}
        placements: list[Placement] = []
        if self.service is not None:
            requests = [
                Request.of(self.service, task.id, avoid=avoid.get(task.id, frozenset()))
                for task in after.values()
                if task.node_id is None and task.wanted
            ]
            placements = place(requests, Ledger.of(self.nodes.values(), after.values()))
            for placement in placements:
                after[placement.task_id] = replace(
                    after[placement.task_id],
                    node_id=placement.node_id,
                    pending_reason="" if placement.node_id else placement.reason,
                    reservations=self.service.reservations,
                )
        self.tasks = after
        return decision, placements

    def act(self) -> Iterator[Task]:
        """Let every agent that can hear us take its tasks as far as it can; yield what changed."""
        for task in list(self.tasks.values()):
            node = self.nodes.get(task.node_id) if task.node_id else None
            if node is None or node.state is not NodeState.READY or node.id in self.silent:
                continue
            after = self._as_told(task)
            if after != task:
                self.tasks[task.id] = after
                yield after

    def settle(self, rounds: int = 200) -> None:
        """Plan and act until nothing changes."""
        for _ in range(rounds):
            before = dict(self.tasks)
            self.plan()
            list(self.act())
            if self.tasks == before:
                return
        raise AssertionError(f"not settled after {rounds} rounds: {self.tasks}")

    def put(self, node: Node) -> None:
        """Add a node or change it; agents of one that is not ready are not heard."""
        if node.state is NodeState.READY:
            node = replace(node, gone_since_s=0.0)
        elif node.gone_since_s == 0.0:
            node = replace(node, gone_since_s=self.now_s)
        self.nodes[node.id] = node

    def _as_told(self, task: Task) -> Task:
        if task.desired is DesiredState.REMOVE:
            return self._ended(task, TaskState.REMOVED)
        if task.observed.ended:
            return task
        if task.desired is DesiredState.SHUTDOWN:
            return self._ended(task, TaskState.SHUTDOWN)
        if task.node_id in self.refusing:
            return self._ended(task, TaskState.REJECTED, "this node cannot run it")
        if task.template_generation in self.broken:
            said = "exit code 1"
            return replace(task, observed=TaskState.WAITING, run=1, ready=False, message=said)
        return replace(task, observed=TaskState.RUNNING, run=1, ready=True, message="")

    def _ended(self, task: Task, state: TaskState, message: str = "") -> Task:
        if task.observed is state:
            return task
        return replace(task, observed=state, ready=False, message=message, ended_at_s=self.now_s)


def serving(tasks: Iterable[Task]) -> list[int]:
    """Return the slots that have a task which runs and is ready."""
    return sorted(task.slot for task in tasks if task.ready and not task.observed.ended)
