"""Sessions of agents with this member: plain objects, which know nothing of gRPC.

A node is held from the moment its presence key carries a session's id until that key
carries another, the node is written down, or this member's lease ends. A session whose
stream has closed still holds its node for a while, in which the agent may come back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from controlplane.api import hearsay
from controlplane.api.assignments import AssignmentBuilder, NodeAssignments
from controlplane.api.node_register import NodeRegister, removed
from controlplane.api.presence_writer import PresenceWriter
from controlplane.errors import (
    CompactedError,
    DeniedError,
    EstibaError,
    InvalidError,
    LeaseEndedError,
    PreconditionError,
    UnavailableError,
)
from controlplane.loops.instruments import Instruments
from controlplane.loops.settings import Timing
from controlplane.store import keys
from controlplane.store.cache import Cache, CacheBatch
from controlplane.store.protocol import Put
from estiba import wire
from estiba.kit.clock import Clock
from estiba.kit.race import race
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

Send = Callable[[dispatch.MemberMessage], Awaitable[None]]

# More messages than this unsent: the agent does not read.
MOST_UNSENT = 1000


class Session:
    """One agent's registration with this member."""

    def __init__(
        self,
        node_id: str,
        presence: v1.Presence,
        assignments: NodeAssignments,
        *,
        heard_at_s: float,
    ) -> None:
        self.node_id = node_id
        self.id = presence.session_id
        self.presence = presence.SerializeToString(deterministic=True)
        self.opened_at = 0
        """The store's revision of the presence key; 0: not known to be written."""
        self.heard_at_s = heard_at_s
        """When the agent last spoke, by the monotonic clock."""
        self.applied_revision = 0
        self.deposed = False
        self.suspended = False
        self.going_down = False
        self.assignments = assignments
        self._unsent: list[dispatch.MemberMessage] = []
        self._work = asyncio.Event()
        self._ended: asyncio.Future[EstibaError] = asyncio.get_running_loop().create_future()

    @property
    def attached(self) -> bool:
        """Its stream is open."""
        return not self._ended.done()

    def end(self, reason: EstibaError) -> None:
        """Close the stream with this reason; the node stays held."""
        if not self._ended.done():
            self._ended.set_result(reason)

    def depose(self) -> None:
        """Let go of the node: its presence key is not ours any more."""
        self.deposed = True
        self.end(UnavailableError(f"this session of node {self.node_id} is over: begin another"))

    def suspend(self) -> None:
        """Report nothing more under this session: a write of it may still be under way."""
        self.suspended = True
        self.end(UnavailableError("the store did not answer: begin another session"))

    def send(self, message: dispatch.MemberMessage) -> None:
        if len(self._unsent) >= MOST_UNSENT:
            self.end(UnavailableError(f"node {self.node_id} does not read what it is sent"))
        elif self.attached:
            self._unsent.append(message)
            self._work.set()

    def wake(self) -> None:
        """Say that there are assignments to take."""
        self._work.set()

    async def run(
        self,
        incoming: AsyncIterator[dispatch.AgentMessage],
        send: Send,
        *,
        receive: Callable[["Session", dispatch.AgentMessage], None],
        delivered: Callable[[], int],
    ) -> None:
        """Carry messages both ways until the agent closes its side or the session is ended.

        Args:
            delivered: the revision up to which `assignments` has seen all changes.

        Raises:
            EstibaError: why the session was ended.
        """

        async def read() -> None:
            async for message in incoming:
                receive(self, message)
            self.end(UnavailableError("the agent closed its session"))

        async def write() -> None:
            while True:
                await self._work.wait()
                self._work.clear()
                unsent, self._unsent = self._unsent, []
                for message in unsent:
                    await send(message)
                assignments = self.assignments.take(revision=delivered())
                if assignments is not None:
                    await send(dispatch.MemberMessage(assignments=assignments))

        async def wait_for_end() -> None:
            raise await asyncio.shield(self._ended)

        await race(wait_for_end(), read(), write())


class Lease(Protocol):
    """The lease of this member, which presence keys are attached to."""

    @property
    def lease(self) -> int:
        """Its id; 0 while the member has none."""


class Sessions:
    """All sessions with this member."""

    def __init__(
        self,
        *,
        cache: Cache,
        register: NodeRegister,
        writer: PresenceWriter,
        builder: AssignmentBuilder,
        membership: Lease,
        member_id: str,
        clock: Clock,
        timing: Timing,
        instruments: Instruments,
        new_id: Callable[[], str],
    ) -> None:
        self._cache = cache
        self._register = register
        self._writer = writer
        self._builder = builder
        self._membership = membership
        self._member_id = member_id
        self._clock = clock
        self._timing = timing
        self._instruments = instruments
        self._new_id = new_id
        self._watched: dict[str, list[Session]] = {}
        """By node, oldest first: all whose presence key may still be ours."""
        self._delivered = 0

    async def run(self) -> None:
        """Tell sessions of changes and look for silent nodes, for as long as the member lives."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feed(), name="sessions.feed")
            group.create_task(self._sweep(), name="sessions.sweep")
            group.create_task(self._writer.run(), name="sessions.writer")

    def held(self, node_id: str) -> Session | None:
        """Return the open session of a node, if this member has it."""
        watched = self._watched.get(node_id, ())
        return next((each for each in watched if each.attached and each.opened_at), None)

    def let_go(self) -> None:
        """Close all sessions at once: this member's lease is lost, other members take over."""
        for sessions in self._watched.values():
            for session in sessions:
                session.depose()
        self._watched.clear()

    # ------------------------------------------------------------------ one session

    async def serve(
        self,
        node_id: str,
        incoming: AsyncIterator[dispatch.AgentMessage],
        send: Send,
        *,
        hostname: str = "",
    ) -> None:
        """Carry one session of an agent from its hello to its end.

        Args:
            hostname: the only one that the node may claim; "": it may claim any.

        Raises:
            PreconditionError: it claims another.
            DeniedError: the node was removed from the cluster.
            InvalidError: the agent's first message is no hello, or it says what cannot be.
            UnavailableError: the agent had better come again, here or at another member.
        """
        hello = await self._hello(node_id, incoming)
        described = hearsay.description(hello.description)
        self._check_hostname(node_id, claimed=described.hostname, bound=hostname)
        session, node = await self._open(node_id, described)
        # Made in the instant in which the session begins to be told of changes.
        complete = session.assignments.complete(
            self._cache.tasks_on(node_id), revision=self._cache.revision
        )
        log.info("session %s of node %s began", session.id, node.metadata.name)
        self._instruments.sessions.inc()
        try:
            await send(dispatch.MemberMessage(welcome=self._welcome(session, node)))
            await send(dispatch.MemberMessage(assignments=complete))
            await session.run(
                incoming, send, receive=self._receive, delivered=lambda: self._delivered
            )
        except EstibaError as error:
            log.info("session %s of node %s ended: %s", session.id, node.metadata.name, error)
            raise
        finally:
            session.end(UnavailableError("the session's stream has closed"))
            self._instruments.sessions.dec()

    async def _hello(
        self, node_id: str, incoming: AsyncIterator[dispatch.AgentMessage]
    ) -> dispatch.Hello:
        """Wait for the agent's first message, then until our view has reached its own."""
        within_s = self._timing.hello_within_s
        try:
            async with asyncio.timeout(within_s):
                first = await anext(incoming, None)
        except TimeoutError:
            raise UnavailableError(f"node {node_id} has not said hello in {within_s:g} s") from None
        if first is None or not first.HasField("hello"):
            raise InvalidError([("", "the first message of a session must be hello")])
        hello = first.hello
        await self._cache.catch_up()
        epoch = self._cache.cluster.epoch if self._cache.cluster else 0
        if hello.epoch > epoch:
            raise UnavailableError(f"this member knows epoch {epoch}, the node {hello.epoch}")
        if hello.epoch == epoch:
            # Another store's revisions, from before a restore, are not comparable with ours.
            await self._cache.wait_for(hello.revision, timeout_s=within_s)
        return hello

    def _check_hostname(self, node_id: str, *, claimed: str, bound: str) -> None:
        """Refuse a claim to another node's host name, or to one that no token was shown for.

        It is no DeniedError, on which an agent stops its containers: most often somebody has
        only renamed the machine.
        """
        if bound and claimed not in ("", bound):
            self._instruments.denied_calls.inc()
            sentence = (
                f"node {node_id} claims the host name {claimed}, its certificate is for {bound}:"
                f" set hostname to {bound} in its configuration, or let it join again"
            )
            log.warning("refused a session: %s", sentence)
            raise PreconditionError(sentence)

    async def _open(self, node_id: str, described: v1.NodeDescription) -> tuple[Session, v1.Node]:
        node = await self._register.ensure(
            node_id, described.hostname, within_s=self._timing.hello_within_s
        )
        lease = self._membership.lease
        if not lease:
            raise UnavailableError("this member has no lease at the moment")
        session = self._new_session(node_id)
        self._watched.setdefault(node_id, []).append(session)
        status = self._status(node, v1.NODE_STATE_READY, "", described)
        try:
            session.opened_at = await self._register.claim(node_id, session.presence, lease, status)
        except (DeniedError, LeaseEndedError, UnavailableError):
            # Anything else leaves open whether the key was written: the sweep finds out.
            self._drop(session)
            raise
        for other in list(self._watched.get(node_id, ())):
            if other is not session and other.opened_at < session.opened_at:
                other.depose()
                self._drop(other)
        await self._cache.wait_for(session.opened_at, timeout_s=self._timing.hello_within_s)
        present = self._cache.presences.get(node_id)
        if node_id not in self._cache.nodes:
            session.depose()
            raise removed(node_id)
        if session.deposed or present is None or present.session_id != session.id:
            session.depose()
            raise UnavailableError(f"another session of node {node_id} has begun")
        return session, self._cache.nodes[node_id]

    def _new_session(self, node_id: str) -> Session:
        presence = v1.Presence(session_id=self._new_id(), member_id=self._member_id)
        epoch = self._cache.cluster.epoch if self._cache.cluster else 0
        return Session(
            node_id,
            presence,
            NodeAssignments(self._builder.build, epoch=epoch),
            heard_at_s=self._clock.monotonic(),
        )

    def _welcome(self, session: Session, node: v1.Node) -> dispatch.Welcome:
        return dispatch.Welcome(
            session_id=session.id,
            member_id=self._member_id,
            epoch=self._cache.cluster.epoch if self._cache.cluster else 0,
            heartbeat_ms=round(self._timing.heartbeat_s * 1000),
            silence_ms=round(self._timing.down_after_s * 1000),
            node_name=node.metadata.name,
            member_addresses=sorted(each.address for each in self._cache.members.values()),
        )

    # ------------------------------------------------------------------ what agents say

    def _receive(self, session: Session, message: dispatch.AgentMessage) -> None:
        session.heard_at_s = self._clock.monotonic()
        if message.HasField("heartbeat"):
            session.applied_revision = message.heartbeat.applied_revision
            heartbeat_ms = round(self._timing.heartbeat_s * 1000)
            session.send(
                dispatch.MemberMessage(seen=dispatch.HeartbeatSeen(heartbeat_ms=heartbeat_ms))
            )
        elif message.HasField("report"):
            self._report(session, message.report)

    def _report(self, session: Session, report: dispatch.Report) -> None:
        statuses: list[Put] = []
        for each in report.tasks:
            task = self._cache.tasks.get(each.task_id)
            if task is None:
                # Forgotten meanwhile, as the node will be told, or was.
                continue
            if task.node_id != session.node_id:
                self._instruments.foreign_reports.inc()
                log.warning("node %s reports on task %s of another", session.node_id, each.task_id)
                continue
            if wire.report_order(each.status) > wire.report_order(task.status):
                status = hearsay.task_status(each.status)
                value = status.SerializeToString(deterministic=True)
                statuses.append(Put(keys.task_status(each.task_id), value))
        stored = dispatch.MemberMessage(stored=dispatch.ReportStored(number=report.number))
        self._writer.put(session, statuses, then=lambda: session.send(stored))

    # ------------------------------------------------------------------ changes for agents

    async def _feed(self) -> None:
        await self._cache.ready.wait()
        self._delivered = self._cache.revision
        while True:
            try:
                async for batch in self._cache.changes(self._delivered):
                    self._deliver(batch)
            except CompactedError as gap:
                log.warning("all sessions begin again: %s", gap)
                self._delivered = self._cache.revision
                for sessions in self._watched.values():
                    for session in sessions:
                        session.end(UnavailableError("this member fell behind"))

    def _deliver(self, batch: CacheBatch) -> None:
        for change in batch.changes:
            match change.before, change.after:
                case _, v1.Task() as task:
                    self._task_changed(task, task, batch.revision)
                case v1.Task() as task, None:
                    self._task_changed(task, None, batch.revision)
                case v1.Node(), None:
                    for session in self._watched.pop(change.id, ()):
                        session.deposed = True
                        session.end(removed(change.id))
                case _, v1.Presence() as presence:
                    self._presence_changed(change.id, presence.session_id, batch.revision)
                case v1.Presence(), None:
                    self._presence_changed(change.id, "", batch.revision)
        self._delivered = batch.revision

    def _task_changed(self, task: v1.Task, after: v1.Task | None, revision: int) -> None:
        for session in self._watched.get(task.node_id, ()):
            if session.assignments.change(task.metadata.id, after, revision=revision):
                session.wake()

    def _presence_changed(self, node_id: str, session_id: str, revision: int) -> None:
        for session in self._watched.get(node_id, ()):
            if session_id != session.id and 0 < session.opened_at < revision:
                session.depose()

    # ------------------------------------------------------------------ silence

    async def _sweep(self) -> None:
        """Write down the nodes that have been silent too long.

        A stall of our own must not look like their death: it is added to the time that
        they were heard at.
        """
        period_s = self._timing.down_after_s / 10
        while True:
            before_s = self._clock.monotonic()
            await self._clock.sleep(period_s)
            stalled_s = self._clock.monotonic() - before_s - period_s
            now_s = self._clock.monotonic()
            for session in [each for held in self._watched.values() for each in held]:
                session.heard_at_s += stalled_s
                if session.deposed:
                    self._drop(session)
                elif now_s - session.heard_at_s > self._timing.down_after_s:
                    self._write_down(session)

    def _write_down(self, session: Session) -> None:
        if session.going_down:
            return
        session.going_down = True
        silence = f"no sign of life for {self._timing.down_after_s:g} s"
        session.end(UnavailableError(silence))
        node = self._cache.nodes.get(session.node_id)
        if node is None:
            self._drop(session)
            return
        status = self._status(node, v1.NODE_STATE_DOWN, silence, node.status.description)
        value = status.SerializeToString(deterministic=True)

        def written() -> None:
            log.warning("node %s is down: %s", node.metadata.name, silence)
            session.depose()
            self._drop(session)

        record = Put(keys.node_status(session.node_id), value)
        self._writer.release(session, record, written)

    def _status(
        self,
        node: v1.Node,
        state: v1.NodeState.ValueType,
        message: str,
        description: v1.NodeDescription,
    ) -> v1.NodeStatus:
        """Return the node's next status, made from the one that was read."""
        status = v1.NodeStatus()
        status.CopyFrom(node.status)
        if status.state != state or not status.HasField("since"):
            status.since.CopyFrom(wire.timestamp(self._clock.now()))
        status.state = state
        status.message = message
        status.description.CopyFrom(description)
        status.member_id = self._member_id if state == v1.NODE_STATE_READY else ""
        status.tasks = 0
        status.ClearField("usage")
        return status

    def _drop(self, session: Session) -> None:
        watched = self._watched.get(session.node_id, [])
        if session in watched:
            watched.remove(session)
        if not watched:
            self._watched.pop(session.node_id, None)
