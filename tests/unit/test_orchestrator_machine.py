"""Planner and agents together, while users, operators and failures do as they please."""

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlplane.orchestrator import StopTask, summarize
from estiba.model import (
    Availability,
    Node,
    NodeId,
    NodeState,
    Resources,
    Service,
    ServiceId,
    Task,
    TaskState,
)
from tests.support.plans import World, serving

CAPACITY = Resources(4, 4)
NODE_IDS = [NodeId(f"n{index}") for index in range(1, 5)]
node_ids = st.sampled_from(NODE_IDS)


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(Service(ServiceId("web"), "web", 3, reservations=Resources(1, 0)))
        for node_id in NODE_IDS:
            self.world.put(Node(node_id, node_id, capacity=CAPACITY))

    @property
    def service(self) -> Service:
        assert self.world.service is not None
        return self.world.service

    # ------------------------------------------------------------------ what people and fate do

    @rule(replicas=st.integers(0, 8))
    def scale(self, replicas: int) -> None:
        self.world.service = replace(self.service, replicas=replicas)

    @rule(broken=st.booleans())
    def new_template(self, broken: bool) -> None:
        generation = self.service.template_generation + 1
        self.world.service = replace(self.service, template_generation=generation)
        if broken:
            self.world.broken.add(generation)

    @rule(musts=st.sampled_from([(), ("node.id != n1",), ("node.labels.disk == ssd",)]))
    def constrain(self, musts: tuple[str, ...]) -> None:
        self.world.service = replace(self.service, constraints=musts)

    @rule(node_id=node_ids, state=st.sampled_from(NodeState))
    def presence(self, node_id: NodeId, state: NodeState) -> None:
        self._change(node_id, state=state)

    @rule(node_id=node_ids, availability=st.sampled_from(Availability))
    def availability(self, node_id: NodeId, availability: Availability) -> None:
        self._change(node_id, availability=availability)

    @rule(node_id=node_ids)
    def label(self, node_id: NodeId) -> None:
        self._change(node_id, labels={"disk": "ssd"})

    @rule(node_id=node_ids, refuses=st.booleans())
    def refuse(self, node_id: NodeId, refuses: bool) -> None:
        (self.world.refusing.add if refuses else self.world.refusing.discard)(node_id)

    @precondition(lambda self: len(self.world.nodes) > 2)
    @rule(node_id=node_ids)
    def remove(self, node_id: NodeId) -> None:
        self.world.nodes.pop(node_id, None)

    @rule(seconds=st.sampled_from([0.5, 5.0, 20.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.world.now_s += seconds

    def _change(self, node_id: NodeId, **changes: Any) -> None:
        node = self.world.nodes.get(node_id)
        if node is not None:
            self.world.put(replace(node, **changes))

    # ----------------------------------------------------------------------- what the system does

    @rule()
    def act(self) -> None:
        list(self.world.act())

    @rule()
    def plan(self) -> None:
        before = dict(self.world.tasks)
        decision, placements = self.world.plan()
        assert self.world.plan()[0].actions == ()
        assert all(placement.reason for placement in placements)
        up = {task.slot for task in before.values() if self._serves(task)}
        stopped = {
            before[action.task_id].slot
            for action in decision.actions
            if isinstance(action, StopTask) and self._serves(before[action.task_id])
        }
        given_up = {slot for slot in stopped if slot <= self.service.replicas}
        assert len(given_up) <= 1
        assert not given_up or up >= set(range(1, self.service.replicas + 1))

    def _serves(self, task: Task) -> bool:
        node = self.world.nodes.get(task.node_id) if task.node_id else None
        present = node is not None and node.state is NodeState.READY
        return task.wanted and task.ready and not task.lost and present

    # ---------------------------------------------------------------------------- what must hold

    @invariant()
    def no_node_holds_more_than_it_has(self) -> None:
        for node in self.world.nodes.values():
            tasks = [task for task in self.world.tasks.values() if task.node_id == node.id]
            used = sum(task.reservations.nano_cpus for task in tasks if task.holds_resources)
            assert used <= node.capacity.nano_cpus

    @invariant()
    def no_slot_is_twice_wanted(self) -> None:
        wanted = [task.slot for task in self.world.tasks.values() if task.wanted]
        assert len(wanted) == len(set(wanted))

    @invariant()
    def whoever_waits_for_a_place_knows_why(self) -> None:
        for task in self.world.tasks.values():
            assert task.node_id is not None or task.pending_reason

    @invariant()
    def history_is_bounded(self) -> None:
        ended = [task for task in self.world.tasks.values() if task.observed.ended]
        assert len(ended) <= 300

    def teardown(self) -> None:
        """Whatever happened: once all is well, the service converges, and nothing more is done."""
        self.world.refusing.clear()
        self.world.nodes = {
            node_id: Node(node_id, node_id, labels={"disk": "ssd"}, capacity=Resources(99, 99))
            for node_id in NODE_IDS[1:]
        }
        self.new_template(broken=False)
        for _ in range(10):
            self.world.settle()
            self.world.now_s += 100
        assert summarize(self.service, self.world.tasks.values(), self.world.nodes).converged
        assert serving(self.world.tasks.values()) == list(range(1, self.service.replicas + 1))
        self.world.now_s += 4000
        self.world.settle()
        for task in self.world.tasks.values():
            assert task.slot <= self.service.replicas
            assert task.wanted or task.observed in (TaskState.SHUTDOWN, TaskState.REJECTED)


Cluster.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_a_cluster_keeps_its_promises_and_heals = Cluster.TestCase
