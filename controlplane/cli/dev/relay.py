"""Carry connections from sockets that were opened on the host to addresses on the fabric.

Runs in the fabric's network namespace; the listening sockets are inherited and belong
to the namespace they were opened in. Bytes are carried as they are, TLS stays end to
end, and each direction ends on its own.

    python -m controlplane.cli.dev.relay FD=HOST:PORT ...
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial

from estiba.kit import logs

log = logging.getLogger("relay")

PIECE_BYTES = 65536
CONNECT_TIMEOUT_S = 5.0


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one direction until its end, and pass the end on."""
    while piece := await reader.read(PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


class Carrier:
    """Connects to one address, and carries bytes to it and back."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            log.debug("no connection to %s:%d: %s", self._host, self._port, error)
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer), name="relay.out")
                group.create_task(_pump(far_reader, writer), name="relay.back")
        except* OSError as errors:
            # One side broke the connection, so we break it for the other.
            log.debug("%s:%d: %s", self._host, self._port, errors.exceptions[0])
            far_writer.transport.abort()
            writer.transport.abort()
        finally:
            # Whatever is still on its way is sent before these close.
            far_writer.close()
            writer.close()


async def serve(forwards: Sequence[tuple[int, str]]) -> None:
    """Serve until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(carry(forwards), name="relay.carry")
        await ended.wait()
        running.cancel()


async def carry(forwards: Sequence[tuple[int, str]]) -> None:
    """Carry connections until cancelled."""
    servers = []
    # A connection whose ends both wait is referred to by nobody but this group: once one of
    # them is half closed the loop forgets it, and the garbage collector would take it.
    async with asyncio.TaskGroup() as group:
        for descriptor, target in forwards:
            listening = socket.socket(fileno=descriptor)
            listening.setblocking(False)
            accept = partial(_accept, group, Carrier(target))
            servers.append(await asyncio.start_server(accept, sock=listening))
        try:
            await asyncio.Future[None]()
        finally:
            for server in servers:
                server.close()


def _accept(
    group: asyncio.TaskGroup,
    carrier: Carrier,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    group.create_task(carrier.carry(reader, writer), name="relay.connection")


def main() -> None:
    logs.set_up("relay")
    pairs = (word.split("=", 1) for word in sys.argv[1:])
    asyncio.run(serve([(int(descriptor), target) for descriptor, target in pairs]))


if __name__ == "__main__":
    main()
