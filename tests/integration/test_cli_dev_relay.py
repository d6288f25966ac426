"""The relay carries bytes both ways, to the end of each."""

import asyncio
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from controlplane.cli.dev.relay import carry

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# Larger than any buffer on the way.
MUCH = b"estiba" * 500_000


async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with what was sent once its end has come, which takes a half-closed connection."""
    received = await reader.read()
    writer.write(received)
    writer.close()


@pytest.fixture
async def relayed() -> AsyncIterator[tuple[str, int]]:
    """Start a relay to a server and yield the host and port that it listens on."""
    server = await asyncio.start_server(answer_at_the_end, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        relay = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controlplane.cli.dev.relay"),
            f"{listening.fileno()}={target[0]}:{target[1]}",
            pass_fds=[listening.fileno()],
        )
        yield listening.getsockname()
        relay.terminate()
        assert await relay.wait() == 0
    server.close()
    await server.wait_closed()


async def test_what_is_sent_arrives_and_the_answer_comes_back_after_a_half_close(
    relayed: tuple[str, int],
) -> None:
    reader, writer = await asyncio.open_connection(*relayed)
    writer.write(MUCH)
    writer.write_eof()
    assert await reader.read() == MUCH
    writer.close()
    await writer.wait_closed()


async def test_one_connection_that_breaks_harms_no_other(relayed: tuple[str, int]) -> None:
    _, broken = await asyncio.open_connection(*relayed)
    broken.write(b"half a wo")
    broken.transport.abort()
    reader, writer = await asyncio.open_connection(*relayed)
    writer.write(b"whole")
    writer.write_eof()
    assert await reader.read() == b"whole"
    writer.close()
    await writer.wait_closed()


async def test_the_garbage_collector_takes_no_connection_that_waits_for_its_answer() -> None:
    arrived, answer = asyncio.Event(), asyncio.Event()

    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        arrived.set()
        await answer.wait()
        writer.write(b"late")
        writer.close()

    server = await asyncio.start_server(answer_late, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        relay = asyncio.create_task(carry([(os.dup(listening.fileno()), f"{host}:{port}")]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write_eof()
        await arrived.wait()
        gc.collect()
        answer.set()
        assert await reader.read() == b"late"
        writer.close()
        relay.cancel()
        await asyncio.wait([relay])
    server.close()
    await server.wait_closed()
