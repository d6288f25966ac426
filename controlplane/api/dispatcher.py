"""The API for agents, and for other members that want something of our agents."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from grpc import aio

from controlplane.api.access import caller
from controlplane.api.sessions import Sessions
from controlplane.api.streams import Streams
from estiba.v1 import dispatcher_pb2 as pb
from estiba.v1 import dispatcher_pb2_grpc as pb_grpc

Context = aio.ServicerContext[Any, Any]


class DispatcherServicer(pb_grpc.DispatcherServicer):
    """The node is the one that the caller's certificate names, whatever it says of itself."""

    def __init__(self, sessions: Sessions, streams: Streams) -> None:
        self._sessions = sessions
        self._streams = streams

    # gRPC takes a coroutine that writes as well as a generator; the stubs know generators only.
    async def Session(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Context
    ) -> None:
        node = caller()
        await self._sessions.serve(
            node.name, request_iterator, context.write, hostname=node.hostname
        )

    async def Carry(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.Frame], context: Context
    ) -> None:
        await self._streams.carry(caller().name, request_iterator)


class PeerServicer(pb_grpc.PeerServicer):
    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def Open(self, request: pb.OpenRequest, context: Context) -> AsyncIterator[pb.Frame]:
        opened = self._streams.open_held(request.node_id, request.purpose)
        async with opened as frames, aclosing(frames):
            # Tells the other member that the node has opened its end, before it says anything.
            await context.send_initial_metadata(())
            async for frame in frames:
                yield frame
