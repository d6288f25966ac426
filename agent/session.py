"""Keep one session with any member of the control plane: find one, listen, report, move on.

What the member says is handed on: assignments to the book, requests for bulk data to
the streams. A member that falls silent is left for another one; an agent without any
member goes on with what it has.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from agent.book import Book
from agent.connecting import Connector
from agent.errors import RemovedError, SessionError, StaleError, first_of
from agent.reporter import Reporter
from agent.streams import Streams
from estiba.kit.backoff import Backoff
from estiba.kit.clock import Clock
from estiba.kit.seldom import Seldom
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from estiba.v1.dispatcher_pb2_grpc import DispatcherStub

log = logging.getLogger(__name__)

# A member that works may have to wait for the store.
WELCOME_WITHIN_S = 5.0
DEFAULT_HEARTBEAT_S = 1.5
DEFAULT_SILENCE_S = 3.0
FIRST_RETRY_S = 0.1
MOST_RETRY_S = 1.0
REMOVED_RETRY_S = 30.0
# Of each member: why there is no session with it.

Call = grpc.aio.StreamStreamCall[dispatch.AgentMessage, dispatch.MemberMessage]


@dataclass(slots=True)
class Pulse:
    """The rhythm of one session, as the member sets it."""

    heartbeat_s: float = DEFAULT_HEARTBEAT_S
    silence_s: float = DEFAULT_SILENCE_S


class Session:
    """`run` never returns: it serves one session after the other."""

    def __init__(
        self,
        *,
        members: Sequence[str],
        connector: Connector,
        describe: Callable[[], v1.NodeDescription],
        book: Book,
        reporter: Reporter,
        streams: Streams,
        clock: Clock,
        random: Callable[[], float],
        tell: Callable[[str], None],
    ) -> None:
        """``tell`` is given the id of the member that serves now, "" when none does any more."""
        self._configured = tuple(members)
        self._members = list(members)
        # So that a thousand agents with one configuration do not all ask its first member.
        self._next = int(random() * len(members))
        self._connector = connector
        self._describe = describe
        self._book = book
        self._reporter = reporter
        self._streams = streams
        self._clock = clock
        self._tell = tell
        self._backoff = Backoff(first_s=FIRST_RETRY_S, most_s=MOST_RETRY_S, random=random)
        self._failing: defaultdict[str, Seldom] = defaultdict(Seldom)
        self._refused = False
        self._connected = False

    @property
    def connected(self) -> bool:
        """A member serves this node now."""
        return self._connected

    @property
    def members(self) -> Sequence[str]:
        """Where members are, as far as is known."""
        return self._members

    async def run(self) -> None:
        while True:
            address = self._members[self._next % len(self._members)]
            self._next += 1
            try:
                await self._serve(address)
            except RemovedError as fault:
                await self._removed(fault)
            except SessionError as fault:
                if self._failing[address].due(self._clock.monotonic()):
                    log.info("no session with %s: %s", address, fault)
                await self._clock.sleep(self._backoff.next_s())

    async def _removed(self, fault: RemovedError) -> None:
        if not self._refused:
            log.warning("this node was removed, everything on it is stopped: %s", fault)
        self._refused = True
        await self._book.clear()
        await self._clock.sleep(REMOVED_RETRY_S)

    # ---------------------------------------------------------------- one session

    async def _serve(self, address: str) -> None:
        async with self._connector.connected(address) as channel:
            stub = DispatcherStub(channel)
            call = stub.Session()
            try:
                ended = await self._converse(call, address)
                raise await _reason(call, ended)
            finally:
                if self._connected:
                    self._tell("")
                self._connected = False
                call.cancel()

    async def _converse(self, call: Call, address: str) -> BaseException:
        """Talk until something ends it, and return that."""
        ended: BaseException = SessionError("it ended")
        try:
            pulse = await self._greet(call)
            async with asyncio.TaskGroup() as group:
                voice = _Voice(call)
                group.create_task(self._beat(voice, pulse), name="session.heartbeat")
                group.create_task(self._reporter.run(voice.report), name="session.reports")
                await self._listen(call, pulse, group, address)
        except* (SessionError, grpc.aio.AioRpcError, asyncio.InvalidStateError) as faults:
            ended = first_of(faults)
        return ended

    async def _greet(self, call: Call) -> Pulse:
        known = self._book.known
        hello = dispatch.Hello(
            description=self._describe(), epoch=known.epoch, revision=known.revision
        )
        try:
            async with asyncio.timeout(WELCOME_WITHIN_S):
                await call.write(dispatch.AgentMessage(hello=hello))
                message = await _read(call)
        except TimeoutError:
            raise SessionError(f"no welcome within {WELCOME_WITHIN_S:g} s") from None
        if not message.HasField("welcome"):
            raise SessionError("its first message is no welcome")
        welcome = message.welcome
        if welcome.epoch < known.epoch:
            raise StaleError(f"it is of epoch {welcome.epoch}, but {known.epoch} was accepted")
        log.info("session %s with member %s", welcome.session_id, welcome.member_id)
        self._failing.clear()
        self._refused = False
        self._connected = True
        self._tell(welcome.member_id)
        self._learn(welcome.member_addresses)
        return Pulse(
            welcome.heartbeat_ms / 1000 or DEFAULT_HEARTBEAT_S,
            welcome.silence_ms / 1000 or DEFAULT_SILENCE_S,
        )

    def _learn(self, addresses: Sequence[str]) -> None:
        """Know these members, and those of the configuration in case these are all gone."""
        here = self._members[(self._next - 1) % len(self._members)]
        self._members = list(dict.fromkeys([*addresses, *self._configured]))
        if here in self._members:
            self._next = self._members.index(here) + 1

    async def _listen(
        self, call: Call, pulse: Pulse, group: asyncio.TaskGroup, address: str
    ) -> None:
        async with self._streams.to(lambda: self._connector.open(address)) as carrier:
            while True:
                try:
                    async with asyncio.timeout(pulse.silence_s):
                        message = await _read(call)
                except TimeoutError:
                    raise SessionError(f"silent for {pulse.silence_s:g} s") from None
                match message.WhichOneof("message"):
                    case "assignments":
                        await self._book.accept(message.assignments)
                        self._backoff.reset()
                    case "stored":
                        self._reporter.stored(message.stored.number)
                    case "seen":
                        pulse.heartbeat_s = message.seen.heartbeat_ms / 1000 or pulse.heartbeat_s
                    case "open":
                        opened = message.open
                        group.create_task(carrier.carry(opened), name=f"carry.{opened.stream_id}")
                    case _:
                        # A newer member may say what this agent does not know yet.
                        log.debug("a message this agent does not understand")

    async def _beat(self, voice: "_Voice", pulse: Pulse) -> None:
        while True:
            heartbeat = dispatch.Heartbeat(applied_revision=self._book.known.revision)
            await voice.say(dispatch.AgentMessage(heartbeat=heartbeat))
            await self._clock.sleep(pulse.heartbeat_s)


class _Voice:
    """The one way to write on a call, which takes one message at a time."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._turn = asyncio.Lock()

    async def say(self, message: dispatch.AgentMessage) -> None:
        async with self._turn:
            await self._call.write(message)

    async def report(self, report: dispatch.Report) -> None:
        await self.say(dispatch.AgentMessage(report=report))


async def _read(call: Call) -> dispatch.MemberMessage:
    message = await call.read()
    if isinstance(message, dispatch.MemberMessage):
        return message
    raise SessionError("the member ended it")


_TELL_NOTHING = (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)


async def _reason(call: Call, ended: BaseException) -> SessionError:
    """Say why a session ended; the status of the call knows better than a failed write."""
    if call.done():
        code, details = await call.code(), await call.details()
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return RemovedError(details or "permission denied")
        # A read that we gave up has cancelled the whole call.
        if isinstance(ended, SessionError) and code in _TELL_NOTHING:
            return ended
        return SessionError(f"{code.name}: {details}")
    return ended if isinstance(ended, SessionError) else SessionError(str(ended))
