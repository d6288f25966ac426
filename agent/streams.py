"""Carry bulk data that a member asked for, on connections apart from the session's.

So a flood of logs never delays a heartbeat. A stream ends with one end frame: "" or
what went wrong; a reader that goes away ends it too.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import grpc

from agent.tasks.logs import LogReader
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1.dispatcher_pb2_grpc import DispatcherStub

log = logging.getLogger(__name__)

READER_GONE = "its reader has gone"

Call = grpc.aio.StreamStreamCall[dispatch.Frame, dispatch.Frame]


class UsageReader(Protocol):
    async def read(self) -> dispatch.NodeUsage:
        """Return what the node and its containers use now."""


class Streams:
    def __init__(self, logs: LogReader, usage: UsageReader) -> None:
        self._logs = logs
        self._usage = usage

    @asynccontextmanager
    async def to(self, open_channel: Callable[[], grpc.aio.Channel]) -> AsyncIterator["Carrier"]:
        """Carry to one member, over a connection opened when first needed."""
        carrier = Carrier(self, open_channel)
        try:
            yield carrier
        finally:
            await carrier.close()

    async def frames(self, purpose: dispatch.Purpose) -> AsyncIterator[dispatch.Frame]:
        match purpose.WhichOneof("of"):
            case "logs":
                async for batch in self._logs.read(purpose.logs):
                    yield dispatch.Frame(logs=batch)
                yield dispatch.Frame(end=dispatch.End())
            case "usage":
                yield dispatch.Frame(usage=await self._usage.read())
                yield dispatch.Frame(end=dispatch.End())
            case _:
                error = "this agent does not know what it is asked for: it is too old"
                yield dispatch.Frame(end=dispatch.End(error=error))


class Carrier:
    def __init__(self, streams: Streams, open_channel: Callable[[], grpc.aio.Channel]) -> None:
        self._streams = streams
        self._open_channel = open_channel
        self._channel: grpc.aio.Channel | None = None

    async def carry(self, opened: dispatch.Open) -> None:
        """Open the stream and fill it; a broken one is the reader's to ask for again."""
        if self._channel is None:
            self._channel = self._open_channel()
        stub = DispatcherStub(self._channel)
        call = stub.Carry()
        try:
            async with asyncio.TaskGroup() as group:
                filling = group.create_task(self._fill(call, opened), name="carry.fill")
                # A member says nothing on it, so a read ends when the call does.
                await call.read()
                if filling.cancel():
                    log.info("stream %s ended early: %s", opened.stream_id, READER_GONE)
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError) as faults:
            log.info("stream %s ended early: %s", opened.stream_id, _why(faults.exceptions[0]))
        finally:
            call.cancel()

    async def _fill(self, call: Call, opened: dispatch.Open) -> None:
        await call.write(dispatch.Frame(stream_id=opened.stream_id))
        async for frame in self._streams.frames(opened.purpose):
            # Returns when the reader has room: a slow reader slows the reading of files.
            await call.write(frame)
        await call.done_writing()

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


def _why(fault: BaseException) -> str:
    """Say in a few words why a stream ended before all was carried.

    grpc.aio tells a writer that the other side has ended the call by INTERNAL, or by
    InvalidStateError once it has seen the end itself.
    """
    if not isinstance(fault, grpc.aio.AioRpcError) or fault.code() is grpc.StatusCode.INTERNAL:
        return READER_GONE
    return f"{fault.code().name}: {fault.details()}"
