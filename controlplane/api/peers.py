"""The way to the other members: one channel for each, kept open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc import aio

from controlplane.api.channels import CHANNEL_OPTIONS
from controlplane.api.streams import Frames
from controlplane.errors import UnreachableError
from estiba.kit.tls import MEMBER_CHANNEL_OPTIONS, ChannelTls
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import dispatcher_pb2_grpc as dispatch_grpc
from estiba.v1 import types_pb2 as v1

# The other member waits two seconds for its node.
ANSWER_WITHIN_S = 3.0


class GrpcPeers:
    def __init__(self, tls: ChannelTls) -> None:
        self._tls = tls
        # By address and the generation of our certificate: with a new one, new channels are
        # opened, and what the former ones carry goes on.
        self._channels: dict[tuple[str, int], aio.Channel] = {}

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    @asynccontextmanager
    async def open(
        self, member: v1.Member, node_id: str, purpose: dispatch.Purpose
    ) -> AsyncIterator[Frames]:
        """Open a stream to a node whose session ``member`` holds.

        Raises:
            UnreachableError: the member or the node does not answer.
        """
        stub: dispatch_grpc.PeerAsyncStub = dispatch_grpc.PeerStub(self._channel(member.address))
        call = stub.Open(dispatch.OpenRequest(node_id=node_id, purpose=purpose))
        try:
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    # Sent once the node has opened its end, whether or not it has anything to say.
                    await call.initial_metadata()
            except TimeoutError:
                raise UnreachableError(f"member {member.id} does not answer") from None
            if call.done():
                await _refusal(call, member)
            yield _frames(call, member)
        finally:
            call.cancel()

    def _channel(self, address: str) -> aio.Channel:
        key = (address, self._tls.generation)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = aio.secure_channel(
                address,
                self._tls.channel_credentials(),
                options=[*CHANNEL_OPTIONS, *MEMBER_CHANNEL_OPTIONS],
            )
        return channel


Call = aio.UnaryStreamCall[dispatch.OpenRequest, dispatch.Frame]


async def _refusal(call: Call, member: v1.Member) -> None:
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise _unreachable(member, code, await call.details())


async def _frames(call: Call, member: v1.Member) -> Frames:
    try:
        async for frame in call:
            yield frame
    except aio.AioRpcError as error:
        raise _unreachable(member, error.code(), error.details()) from error


def _unreachable(member: v1.Member, code: grpc.StatusCode, details: str | None) -> UnreachableError:
    if code is grpc.StatusCode.UNAVAILABLE and details and details.startswith("node "):
        return UnreachableError(details)
    return UnreachableError(f"member {member.id} does not answer: {details or code.name}")
