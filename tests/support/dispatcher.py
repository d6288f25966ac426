"""A member of the control plane as an agent sees it: real gRPC and TLS, scripted decisions."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import grpc

from estiba.kit.tls import TlsFiles
from estiba.v1 import certificates_pb2 as certificates
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from estiba.v1.certificates_pb2_grpc import (
    CertificatesServicer,
    add_CertificatesServicer_to_server,
)
from estiba.v1.dispatcher_pb2_grpc import DispatcherServicer, add_DispatcherServicer_to_server
from tests.support.certificates import Certificates
from tests.support.waiting import stretched

WITHIN_S = stretched(20.0)

SessionContext = grpc.aio.ServicerContext[dispatch.AgentMessage, dispatch.MemberMessage]
RenewContext = grpc.aio.ServicerContext[certificates.RenewRequest, certificates.RenewResponse]
CarryContext = grpc.aio.ServicerContext[dispatch.Frame, dispatch.Frame]


class Dispatcher(DispatcherServicer, CertificatesServicer):
    """Serves one agent. What it assigns is complete at the start of each session."""

    def __init__(self, *, member_id: str = "estibad-1", epoch: int = 1) -> None:
        self.member_id = member_id
        self.epoch = epoch
        self.revision = 100
        self.assigned: dict[str, dispatch.Assignment] = {}
        self.hellos: list[dispatch.Hello] = []
        self.statuses: dict[str, v1.TaskStatus] = {}
        self.history: list[dispatch.TaskReport] = []
        self.applied_revision = 0
        self.silent = False
        self.storing = True
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.silence_ms = 1000
        self.heartbeat_ms = 100
        self.address = ""
        self.renewing: Callable[[bytes], bytes] | None = None
        """Signs a request; None: there is no authority here."""
        self.renewals = 0
        self._news = asyncio.Condition()
        self._outgoing: asyncio.Queue[dispatch.MemberMessage] | None = None
        self._streams: dict[str, asyncio.Queue[dispatch.Frame]] = {}
        self._server: grpc.aio.Server | None = None
        self._numbers = itertools.count(1)

    # ---------------------------------------------------------------- serving

    async def start(self, tls: TlsFiles, *, address: str = "127.0.0.1:0") -> None:
        self._server = grpc.aio.server()
        add_DispatcherServicer_to_server(self, self._server)
        add_CertificatesServicer_to_server(self, self._server)
        port = self._server.add_secure_port(address, tls.server_credentials())
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """End at once, as a killed member does."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Session(
        self, request_iterator: AsyncIterator[dispatch.AgentMessage], context: SessionContext
    ) -> AsyncIterator[dispatch.MemberMessage]:
        if self.refusal is not None:
            await context.abort(*self.refusal)
        hello = (await anext(request_iterator)).hello
        outgoing: asyncio.Queue[dispatch.MemberMessage] = asyncio.Queue()
        self._outgoing = outgoing
        async with self._news:
            self.hellos.append(hello)
            self._news.notify_all()
        yield dispatch.MemberMessage(welcome=self._welcome())
        yield dispatch.MemberMessage(assignments=self._complete())
        reading = asyncio.create_task(self._read(request_iterator, outgoing), name="test.read")
        try:
            while True:
                message = await outgoing.get()
                if not self.silent:
                    yield message
        finally:
            reading.cancel()

    def _welcome(self) -> dispatch.Welcome:
        return dispatch.Welcome(
            session_id=f"session-{next(self._numbers)}",
            member_id=self.member_id,
            epoch=self.epoch,
            heartbeat_ms=self.heartbeat_ms,
            silence_ms=self.silence_ms,
            node_name="n1",
        )

    def _complete(self) -> dispatch.Assignments:
        return dispatch.Assignments(
            epoch=self.epoch, revision=self.revision, complete=True, set=self.assigned.values()
        )

    async def _read(
        self,
        messages: AsyncIterator[dispatch.AgentMessage],
        outgoing: asyncio.Queue[dispatch.MemberMessage],
    ) -> None:
        async for message in messages:
            async with self._news:
                if message.HasField("heartbeat"):
                    self.applied_revision = message.heartbeat.applied_revision
                    seen = dispatch.HeartbeatSeen(heartbeat_ms=self.heartbeat_ms)
                    outgoing.put_nowait(dispatch.MemberMessage(seen=seen))
                elif message.HasField("report") and self.storing:
                    for each in message.report.tasks:
                        self.statuses[each.task_id] = each.status
                        self.history.append(each)
                    stored = dispatch.ReportStored(number=message.report.number)
                    outgoing.put_nowait(dispatch.MemberMessage(stored=stored))
                self._news.notify_all()

    async def Carry(
        self, request_iterator: AsyncIterator[dispatch.Frame], context: CarryContext
    ) -> AsyncIterator[dispatch.Frame]:
        first = await anext(request_iterator)
        frames = self._streams[first.stream_id]
        async for frame in request_iterator:
            if first.stream_id not in self._streams:
                return
            await frames.put(frame)
        return
        yield dispatch.Frame()

    async def Renew(
        self, request: certificates.RenewRequest, context: RenewContext
    ) -> certificates.RenewResponse:
        self.renewals += 1
        async with self._news:
            self._news.notify_all()
        if self.renewing is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no authority here")
        signed = self.renewing(request.request_pem)
        return certificates.RenewResponse(certificate_pem=signed)

    # ---------------------------------------------------------------- scripting

    def assign(self, *assignments: dispatch.Assignment) -> None:
        """Have these tasks, from the next revision on."""
        self.revision += 1
        for each in assignments:
            self.assigned[each.task_id] = each
        self.send(dispatch.Assignments(epoch=self.epoch, revision=self.revision, set=assignments))

    def desire(self, task_id: str, desired: "v1.DesiredState.ValueType") -> None:
        changed = dispatch.Assignment()
        changed.CopyFrom(self.assigned[task_id])
        changed.desired = desired
        self.assign(changed)

    def forget(self, *task_ids: str) -> None:
        self.revision += 1
        for task_id in task_ids:
            del self.assigned[task_id]
        self.send(dispatch.Assignments(epoch=self.epoch, revision=self.revision, forget=task_ids))

    def send(self, assignments: dispatch.Assignments) -> None:
        if self._outgoing is not None:
            self._outgoing.put_nowait(dispatch.MemberMessage(assignments=assignments))

    async def open(self, purpose: dispatch.Purpose) -> AsyncGenerator[dispatch.Frame, None]:
        """Ask the agent for a stream and yield its frames, the end frame included."""
        assert self._outgoing is not None
        stream_id = f"stream-{next(self._numbers)}"
        # Small, so that a flood waits in the agent and not here.
        frames = self._streams[stream_id] = asyncio.Queue(maxsize=4)
        opened = dispatch.Open(stream_id=stream_id, purpose=purpose)
        self._outgoing.put_nowait(dispatch.MemberMessage(open=opened))
        try:
            while True:
                async with asyncio.timeout(WITHIN_S):
                    frame = await frames.get()
                yield frame
                if frame.HasField("end"):
                    return
        finally:
            del self._streams[stream_id]
            # Whoever waits for room goes on, and finds that nobody reads any more.
            while not frames.empty():
                frames.get_nowait()

    # ---------------------------------------------------------------- waiting

    async def until(self, true: Callable[[], bool], *, within_s: float = WITHIN_S) -> None:
        """Wait for something to be true, looking whenever the agent says something."""
        try:
            async with asyncio.timeout(within_s), self._news:
                await self._news.wait_for(true)
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s; told: {self.statuses}") from None

    async def status(
        self, task_id: str, true: Callable[[v1.TaskStatus], bool], *, within_s: float = WITHIN_S
    ) -> v1.TaskStatus:
        """Wait for a status of a task."""

        def look() -> bool:
            return task_id in self.statuses and true(self.statuses[task_id])

        await self.until(look, within_s=within_s)
        return self.statuses[task_id]


async def serving(issued: Certificates, **settings: int | str) -> Dispatcher:
    dispatcher = Dispatcher()
    for name, value in settings.items():
        setattr(dispatcher, name, value)
    await dispatcher.start(issued.of("estibad-1"))
    return dispatcher
