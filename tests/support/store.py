"""What tests of the store need: a proxy that cuts connections, and short ways to read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from controlplane.store.protocol import Batch, Delete, Entry, Event, Put, Store


async def wipe(store: Store) -> None:
    """Delete every key that Estiba or a test may have made."""
    entries = await everything(store, "/")
    for first in range(0, len(entries), 100):
        await store.commit([], [Delete(entry.key) for entry in entries[first : first + 100]])


async def everything(store: Store, prefix: str, *, limit: int = 1000) -> list[Entry]:
    """List all pages at one revision."""
    page = await store.list(prefix, limit=limit)
    entries = list(page.entries)
    while page.next_key:
        page = await store.list(prefix, start=page.next_key, limit=limit, at=page.revision)
        entries += page.entries
    return entries


async def put(store: Store, key: str, value: bytes = b"", *, lease: int = 0) -> int:
    return await store.commit([], [Put(key, value, lease)])


async def watch_until(store: Store, prefix: str, *, after: int, revision: int) -> list[Batch]:
    """Return the batches that a watch delivers up to ``revision``."""
    batches = []
    async with aclosing(store.watch(prefix, after=after)) as watch:
        async for batch in watch:
            batches.append(batch)
            if batch.revision >= revision:
                break
    return batches


def events_of(batches: list[Batch]) -> list[Event]:
    return [event for batch in batches for event in batch.events]


class Proxy:
    """Stands before a server on loopback, and lets through only so much.

    ``cuts`` are taken one by one: each new connection is closed after that many bytes
    from the server; after the last, connections are left alone.
    """

    def __init__(self, port: int) -> None:
        self.cuts: list[int] = []
        self.made_cuts = 0
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()

    @property
    def endpoint(self) -> str:
        if self._server is None:
            raise RuntimeError("the proxy is not running")
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Close every connection."""
        running = list(self._connections)
        for connection in running:
            connection.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def freeze(self) -> None:
        """Pass nothing on any more, without closing: a network that swallows packets."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._carry(reader, writer), name="proxy")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = self.cuts.pop(0) if self.cuts else None
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.create_task(self._copy(reader, upstream[1], None)),
            asyncio.create_task(self._copy(upstream[0], writer, limit)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            upstream[1].close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(16_384 if limit is None else min(limit, 16_384)):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
                if limit is not None:
                    limit -= len(data)
                    if limit <= 0:
                        self.made_cuts += 1
                        return


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
