"""Plays a story: the commands of a text file, in a world without machines.

nodes NAME...                     ready nodes of 4 cpus and 8 GiB
node NAME ready|unknown|down      what the presence layer says of it
node NAME active|pause|drain      what the operator wants of it
node NAME label KEY=VALUE         give it a label
node NAME refuses                 its agent can run nothing
node NAME silent|heard            its agent does nothing just now | does again
node NAME removed                 the operator removed it for good
service REPLICAS [memory=SIZE]    declare the service web, with a reservation in GiB
scale REPLICAS                    change how many are wanted
constrain [CONSTRAINT]            place only where this holds
template [broken]                 change what its tasks run; broken: it does not stay up
delete                            delete the service
plan                              one round of the planner: what it decides, and why
agents                            every agent does what it is told
settle                            both, again and again, until nothing changes
wait SECONDS                      let time pass
show                              every task, and the service's status
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from controlplane.orchestrator import Action, CreateTask, summarize
from controlplane.scheduler import Placement
from estiba.model import (
    Availability,
    Node,
    NodeId,
    NodeState,
    Resources,
    Service,
    ServiceId,
    Task,
)
from tests.support.plans import World

DIVIDER = "----"
NOTHING = "(nothing)"
GIB = 1 << 30


def play(story: str) -> str:
    """Return the story with the answers its commands give now."""
    teller = _Teller()
    told: list[str] = []
    lines = iter(story.splitlines())
    for line in lines:
        told.append(line)
        if line == DIVIDER:
            told += [*teller.run(told[-2]), ""]
            for answer in lines:
                if not answer:
                    break
    return "\n".join(told).rstrip("\n") + "\n"


class _Teller:
    def __init__(self) -> None:
        self.world = World()

    def run(self, line: str) -> list[str]:
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], Iterator[str]]] = {
            "nodes": self._nodes,
            "node": self._node,
            "service": self._service,
            "scale": self._scale,
            "constrain": self._constrain,
            "template": self._template,
            "delete": self._delete,
            "plan": self._plan,
            "agents": self._agents,
            "settle": self._settle,
            "wait": self._wait,
            "show": self._show,
        }
        return list(commands[name](rest)) or [NOTHING]

    def _nodes(self, names: str) -> Iterator[str]:
        for name in names.split():
            capacity = Resources(4_000_000_000, 8 * GIB)
            self.world.put(Node(NodeId(name), name, capacity=capacity))
        yield from ()

    def _node(self, words: str) -> Iterator[str]:
        name, _, change = words.partition(" ")
        node = self.world.nodes[NodeId(name)]
        if change in ("ready", "unknown", "down"):
            self.world.put(replace(node, state=NodeState[change.upper()]))
        elif change in ("active", "pause", "drain"):
            self.world.put(replace(node, availability=Availability[change.upper()]))
        elif change.startswith("label "):
            key, _, value = change.removeprefix("label ").partition("=")
            self.world.put(replace(node, labels={**node.labels, key: value}))
        elif change == "refuses":
            self.world.refusing.add(node.id)
        elif change == "silent":
            self.world.silent.add(node.id)
        elif change == "heard":
            self.world.silent.discard(node.id)
        elif change == "removed":
            del self.world.nodes[node.id]
        else:
            raise ValueError(change)
        yield from ()

    def _service(self, words: str) -> Iterator[str]:
        replicas, _, memory = words.partition(" memory=")
        need = Resources(0, int(memory or 0) * GIB)
        self.world.service = Service(ServiceId("web"), "web", int(replicas), reservations=need)
        yield from ()

    def _scale(self, replicas: str) -> Iterator[str]:
        self.world.service = replace(self.service, replicas=int(replicas))
        yield from ()

    def _constrain(self, constraint: str) -> Iterator[str]:
        musts = (constraint,) if constraint else ()
        self.world.service = replace(self.service, constraints=musts)
        yield from ()

    def _template(self, how: str) -> Iterator[str]:
        generation = self.service.template_generation + 1
        self.world.service = replace(self.service, template_generation=generation)
        if how == "broken":
            self.world.broken.add(generation)
        yield f"template generation {generation}"

    def _delete(self, _: str) -> Iterator[str]:
        self.world.service = None
        yield from ()

    def _plan(self, _: str) -> Iterator[str]:
        before = dict(self.world.tasks)
        decision, placements = self.world.plan()
        placed = {placement.task_id: placement for placement in placements}
        for action in decision.actions:
            yield _told(action)
            if isinstance(action, CreateTask):
                yield from _where(placed[action.task_id])
        for placement in placements:
            known = before.get(placement.task_id)
            if known is not None and known.pending_reason != placement.reason:
                yield f"place {placement.task_id}"
                yield from _where(placement)
        if decision.wake_after_s is not None:
            yield f"look again in {decision.wake_after_s:g} s"

    def _agents(self, _: str) -> Iterator[str]:
        for task in self.world.act():
            said = f": {task.message}" if task.message else ""
            yield f"{task.node_id} reports {task.id} {task.observed.name.lower()}{said}"

    def _settle(self, _: str) -> Iterator[str]:
        while True:
            round_of = [*self._plan(""), *self._agents("")]
            news = [line for line in round_of if not line.startswith("look again")]
            if not news:
                yield from round_of
                return
            yield from news

    def _wait(self, seconds: str) -> Iterator[str]:
        self.world.now_s += float(seconds)
        yield from ()

    def _show(self, _: str) -> Iterator[str]:
        for task in sorted(self.world.tasks.values(), key=_slot_and_age):
            place = task.node_id or "-"
            marks = " ready" * task.ready + " lost" * task.lost
            states = f"{task.desired.name.lower()} {task.observed.name.lower()}{marks}"
            yield f"{task.id:<10} {place:<3} {states}"
        if self.world.service is not None:
            told = summarize(self.service, self.world.tasks.values(), self.world.nodes)
            counts = f"{told.running}/{told.desired} running, {told.updated} up to date"
            yield f"{counts}: {'converged' if told.converged else told.message}"

    @property
    def service(self) -> Service:
        if self.world.service is None:
            raise ValueError("there is no service")
        return self.world.service


def _told(action: Action) -> str:
    words = {"CreateTask": "create", "StopTask": "stop", "RemoveTask": "remove"}
    words |= {"ForgetTask": "forget", "MarkLost": "lost", "MarkFound": "found"}
    return f"{words[type(action).__name__]} {action.task_id}: {action.reason}"


def _where(placement: Placement) -> Iterator[str]:
    yield f"  {'on ' + placement.node_id if placement.node_id else 'pending'}: {placement.reason}"


def _slot_and_age(task: Task) -> tuple[int, int, int]:
    return task.slot, task.template_generation, task.attempt


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(play(path.read_text()))


if __name__ == "__main__":
    main()
