"""Agents without containers: they speak to the same objects that the servicers do.

One keeps its tasks through restarts as the real one does in its journal, reports until it
is acknowledged, and never goes back to an older revision.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.api.sessions import Send
from controlplane.errors import DeniedError, EstibaError, UnavailableError
from estiba import wire
from estiba.kit.clock import Clock
from estiba.kit.race import race
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

STEPS = (
    v1.TASK_STATE_ACCEPTED,
    v1.TASK_STATE_PREPARING,
    v1.TASK_STATE_STARTING,
    v1.TASK_STATE_RUNNING,
)


class Serves(Protocol):
    """A member's sessions, here or behind a connection."""

    async def serve(
        self, node_id: str, incoming: AsyncIterator[dispatch.AgentMessage], send: Send
    ) -> None: ...


@dataclass(slots=True)
class SimulatedTask:
    assignment: dispatch.Assignment
    status: v1.TaskStatus = field(default_factory=v1.TaskStatus)


class SimulatedAgent:
    """One node. ``members`` returns the sessions of the members that can be reached now."""

    def __init__(
        self,
        node_id: str,
        members: Callable[[], Sequence[Serves]],
        *,
        clock: Clock,
        rng: random.Random,
        nano_cpus: int = 4_000_000_000,
        memory_bytes: int = 8 << 30,
    ) -> None:
        self.node_id = node_id
        self.tasks: dict[str, SimulatedTask] = {}
        self.connected = asyncio.Event()
        """Unset, no message passes, in neither direction, and nobody is told."""
        self.connected.set()
        self.refused = False
        """It was removed from the cluster for good."""
        self.sessions = 0
        self.acknowledged = 0
        self.welcome = dispatch.Welcome()
        self.on_open: Callable[[dispatch.Open], None] = lambda asked: None
        """What it does when it is asked for a stream."""
        self._members = members
        self._clock = clock
        self._rng = rng
        # Without a host name it goes by its id, whichever name its certificate is for.
        self.description = v1.NodeDescription(nano_cpus=nano_cpus, memory_bytes=memory_bytes)
        self._epoch = 0
        self._revision = 0
        self._unacknowledged: dict[str, v1.TaskStatus] = {}
        self._work = asyncio.Event()

    def running(self) -> list[str]:
        """Return the ids of the tasks whose containers run now."""
        return [
            task_id
            for task_id, task in self.tasks.items()
            if task.status.state == v1.TASK_STATE_RUNNING
        ]

    def claim(
        self, task_id: str, state: v1.TaskState.ValueType, *, run: int = 1, message: str = ""
    ) -> None:
        """Report on a task, whether or not it is this node's."""
        status = v1.TaskStatus(state=state, run=run, ready=True, message=message)
        self._unacknowledged[task_id] = status
        self._work.set()

    async def run(self) -> None:
        """Be a node until cancelled or refused. Cancelled and run again, it was restarted."""
        async with asyncio.TaskGroup() as group:
            working = group.create_task(self._work_on_tasks(), name=f"{self.node_id}.tasks")
            while not self.refused:
                members = self._members()
                if members and self.connected.is_set():
                    await self._session(self._rng.choice(members))
                await self._clock.sleep(0.1 + 0.4 * self._rng.random())
            self.tasks.clear()
            working.cancel()

    # ------------------------------------------------------------------ the session

    async def _session(self, sessions: Serves) -> None:
        said: asyncio.Queue[dispatch.AgentMessage] = asyncio.Queue()
        heard: asyncio.Queue[dispatch.MemberMessage] = asyncio.Queue()
        self._unacknowledged = {
            task_id: task.status for task_id, task in self.tasks.items() if task.status.run
        }
        self._work.set()

        async def incoming() -> AsyncGenerator[dispatch.AgentMessage, None]:
            yield self._hello()
            while True:
                message = await said.get()
                await self._travel()
                yield message

        async def send(message: dispatch.MemberMessage) -> None:
            await self._travel()
            heard.put_nowait(message)

        stream = incoming()
        try:
            await race(
                sessions.serve(self.node_id, stream, send),
                self._listen(heard),
                self._heartbeats(said),
                self._reports(said),
            )
        except DeniedError:
            self.refused = True
        except EstibaError:
            pass
        finally:
            await stream.aclose()

    async def _travel(self) -> None:
        """Take as long as a message does; while cut off it is sent again and again."""
        await self._clock.sleep(self._rng.random() * 0.01)
        await self.connected.wait()

    def _hello(self) -> dispatch.AgentMessage:
        self.sessions += 1
        return dispatch.AgentMessage(
            hello=dispatch.Hello(
                description=self.description, epoch=self._epoch, revision=self._revision
            )
        )

    async def _listen(self, heard: asyncio.Queue[dispatch.MemberMessage]) -> None:
        while True:
            try:
                async with asyncio.timeout(5.0):
                    message = await heard.get()
            except TimeoutError:
                raise UnavailableError("the member is silent") from None
            match message.WhichOneof("message"):
                case "welcome":
                    self.welcome = message.welcome
                case "assignments":
                    self._assign(message.assignments)
                case "open":
                    self.on_open(message.open)
                case "stored":
                    self.acknowledged = message.stored.number

    async def _heartbeats(self, said: asyncio.Queue[dispatch.AgentMessage]) -> None:
        while True:
            heartbeat = dispatch.Heartbeat(applied_revision=self._revision)
            said.put_nowait(dispatch.AgentMessage(heartbeat=heartbeat))
            await self._clock.sleep(1.5)

    async def _reports(self, said: asyncio.Queue[dispatch.AgentMessage]) -> None:
        number = 0
        while True:
            await self._work.wait()
            self._work.clear()
            if self._unacknowledged:
                number += 1
                report = dispatch.Report(number=number)
                for task_id, status in self._unacknowledged.items():
                    report.tasks.add(task_id=task_id, status=status)
                self._unacknowledged = {}
                said.put_nowait(dispatch.AgentMessage(report=report))
            await self._clock.sleep(0.02)

    def _assign(self, assignments: dispatch.Assignments) -> None:
        stamp = (assignments.epoch, assignments.revision)
        assert stamp >= (self._epoch, self._revision), f"{self.node_id} was sent back in time"
        self._epoch, self._revision = stamp
        if assignments.complete:
            told = {each.task_id for each in assignments.set}
            for task_id in self.tasks.keys() - told:
                del self.tasks[task_id]
        for each in assignments.set:
            known = self.tasks.get(each.task_id)
            if known is None:
                self.tasks[each.task_id] = SimulatedTask(each)
            else:
                assert each.desired >= known.assignment.desired, "a desired state only rises"
                known.assignment = each
        for task_id in assignments.forget:
            self.tasks.pop(task_id, None)

    # ------------------------------------------------------------------ what it runs

    async def _work_on_tasks(self) -> None:
        while True:
            await self._clock.sleep(0.05 + 0.05 * self._rng.random())
            for task_id, task in list(self.tasks.items()):
                state = self._next(task)
                if state is not None:
                    self._report(task_id, task, state)

    def _next(self, task: SimulatedTask) -> v1.TaskState.ValueType | None:
        desired, state = task.assignment.desired, task.status.state
        if desired == v1.DESIRED_STATE_REMOVE:
            return v1.TASK_STATE_REMOVED if state != v1.TASK_STATE_REMOVED else None
        if state >= v1.TASK_STATE_COMPLETE:
            return None
        if desired == v1.DESIRED_STATE_SHUTDOWN:
            return v1.TASK_STATE_SHUTDOWN
        if state == v1.TASK_STATE_RUNNING:
            return None
        return next(step for step in STEPS if step > state)

    def _report(self, task_id: str, task: SimulatedTask, state: v1.TaskState.ValueType) -> None:
        status = v1.TaskStatus()
        status.CopyFrom(task.status)
        status.state = state
        status.run = max(status.run, 1)
        status.seq = 0
        status.ready = state == v1.TASK_STATE_RUNNING
        status.at.CopyFrom(wire.timestamp(self._clock.now()))
        task.status = status
        self._unacknowledged[task_id] = status
        self._work.set()
