"""Connect to a member of the control plane with this node's certificate of the moment.

A connection that cannot be had says why, which takes a look at both certificates.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent.errors import SessionError
from estiba.kit import tlsfaults
from estiba.kit.clock import Clock
from estiba.kit.livetls import LiveTls
from estiba.kit.tls import MEMBER_CHANNEL_OPTIONS

# A member that is stopped still accepts connections.
CONNECT_WITHIN_S = 2.0
TOLD_WITHIN_S = 1.0
MOST_MESSAGE_BYTES = 64 * 1024 * 1024
REMEDY = "`estiba node join` with a new token renews it"

CHANNEL_OPTIONS = (
    *MEMBER_CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    # Channels to one address share connections, and with them the back-off after a failure,
    # which would outlast ours by minutes.
    ("grpc.use_local_subchannel_pool", 1),
)


class Connector:
    def __init__(self, tls: LiveTls, clock: Clock) -> None:
        self._tls = tls
        self._clock = clock

    def open(self, address: str) -> grpc.aio.Channel:
        credentials = self._tls.channel_credentials()
        return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)

    @asynccontextmanager
    async def connected(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """Connect for the length of the block.

        Raises:
            SessionError: no connection came about; says why.
        """
        async with self.open(address) as channel:
            await self._wait(channel, address)
            yield channel

    async def _wait(self, channel: grpc.aio.Channel, address: str) -> None:
        """Wait for the handshake, and no longer than for the first failure: another may do."""
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                state = channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        break
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
                else:
                    return
        except TimeoutError:
            raise SessionError(f"no connection within {CONNECT_WITHIN_S:g} s") from None
        raise SessionError(self._explain(await _said(channel), address))

    def _explain(self, said: str, address: str) -> str:
        files = self._tls.files
        return (
            tlsfaults.their_fault(said, address=address, files=files)
            or tlsfaults.our_fault(
                said,
                files=files,
                pems=self._tls.pems,
                now_s=self._clock.now(),
                remedy=REMEDY,
            )
            or tlsfaults.brief(said)
        )


async def _said(channel: grpc.aio.Channel) -> str:
    """Ask for what ended the last attempt to connect: a call that is made now fails of it."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=TOLD_WITHIN_S)
    except grpc.aio.AioRpcError as fault:
        return fault.details() or fault.code().name
    return "it can be connected to only now"
