"""Bulk data from nodes: on streams that agents open when their session asks for them.

A node whose session another member holds is reached through that member. Nothing is
gathered on the way: a reader that pauses makes the node pause.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from controlplane.api.pipe import Pipe
from controlplane.api.sessions import Session, Sessions
from controlplane.errors import NotFoundError, UnreachableError
from controlplane.loops.settings import Timing
from controlplane.store.cache import Cache
from estiba.kit.race import race
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1

# Frames of one stream that have been read from the connection and wait for their reader.
FRAMES_AHEAD = 4

Frames = AsyncGenerator[dispatch.Frame, None]


class Peers(Protocol):
    """The way to the other members."""

    def open(
        self, member: v1.Member, node_id: str, purpose: dispatch.Purpose
    ) -> AbstractAsyncContextManager[Frames]:
        """Open a stream to a node whose session ``member`` holds; or UnreachableError."""


class Stream:
    """One stream that a node has been asked for."""

    def __init__(self, node_id: str, node_name: str) -> None:
        self.node_id = node_id
        self.arrived = asyncio.Event()
        self.finished = asyncio.Event()
        self._node_name = node_name
        self._pipe: Pipe[dispatch.Frame] = Pipe(FRAMES_AHEAD)

    async def pump(self, incoming: AsyncIterator[dispatch.Frame]) -> None:
        """Take frames from the connection as fast as they are read."""
        try:
            async for frame in incoming:
                await self._pipe.put(frame)
        finally:
            self._pipe.close(UnreachableError(f"node {self._node_name} broke off"))

    async def frames(self) -> Frames:
        """Yield frames up to and including the one that says it is the last.

        Raises:
            UnreachableError: the stream broke off before that.
        """
        async for frame in self._pipe.items():
            yield frame
            if frame.HasField("end"):
                return


class Streams:
    def __init__(
        self,
        *,
        sessions: Sessions,
        cache: Cache,
        peers: Peers,
        member_id: str,
        timing: Timing,
        new_id: Callable[[], str],
    ) -> None:
        self._sessions = sessions
        self._cache = cache
        self._peers = peers
        self._member_id = member_id
        self._timing = timing
        self._new_id = new_id
        self._asked: dict[str, Stream] = {}

    @asynccontextmanager
    async def open(self, node_id: str, purpose: dispatch.Purpose) -> AsyncIterator[Frames]:
        """Open a stream to a node, wherever its session is, for the length of the block.

        Raises:
            UnreachableError: the node, or the member that holds its session, does not answer.
        """
        session = self._sessions.held(node_id)
        if session is not None:
            async with self._open_here(session, purpose) as frames:
                yield frames
            return
        presence = self._cache.presences.get(node_id)
        member = self._cache.members.get(presence.member_id) if presence is not None else None
        if member is None or member.id == self._member_id:
            raise UnreachableError(f"node {self._name(node_id)} is not connected")
        async with self._peers.open(member, node_id, purpose) as frames:
            yield frames

    @asynccontextmanager
    async def open_held(self, node_id: str, purpose: dispatch.Purpose) -> AsyncIterator[Frames]:
        """Open a stream to a node for another member.

        Raises:
            NotFoundError: its session is not here.
            UnreachableError: the node does not answer.
        """
        session = self._sessions.held(node_id)
        if session is None:
            raise NotFoundError(f"the session of node {node_id} is not with {self._member_id}")
        async with self._open_here(session, purpose) as frames:
            yield frames

    async def carry(self, node_id: str, incoming: AsyncIterator[dispatch.Frame]) -> None:
        """Take over a stream that a node opens, until its reader is done with it.

        Raises:
            NotFoundError: the node was not asked for it, or too long ago.
        """
        first = await anext(incoming, None)
        stream = self._asked.get(first.stream_id) if first is not None else None
        if stream is None or stream.node_id != node_id or stream.arrived.is_set():
            raise NotFoundError(f"node {node_id} was not asked for this stream")
        stream.arrived.set()
        await race(stream.pump(incoming), _finished(stream))

    @asynccontextmanager
    async def _open_here(
        self, session: Session, purpose: dispatch.Purpose
    ) -> AsyncIterator[Frames]:
        name = self._name(session.node_id)
        stream_id = self._new_id()
        stream = Stream(session.node_id, name)
        self._asked[stream_id] = stream
        try:
            asked = dispatch.Open(stream_id=stream_id, purpose=purpose)
            session.send(dispatch.MemberMessage(open=asked))
            try:
                async with asyncio.timeout(self._timing.carry_within_s):
                    await stream.arrived.wait()
            except TimeoutError:
                raise UnreachableError(f"node {name} does not answer") from None
            yield stream.frames()
        finally:
            del self._asked[stream_id]
            stream.finished.set()

    def _name(self, node_id: str) -> str:
        node = self._cache.nodes.get(node_id)
        return node.metadata.name if node is not None else node_id


async def _finished(stream: Stream) -> None:
    await stream.finished.wait()
