"""Serve metrics and health over HTTPS: every caller shows a certificate, and its role decides.

Knows how to serve and whom; what is served are the routes that it is given.
"""

import asyncio
import importlib.metadata
import logging
import platform
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder

from estiba.kit.handshakes import NotedSocket, Refused
from estiba.kit.seldom import Seldom
from estiba.kit.text import plain
from estiba.kit.tls import Identity, Role, ServerTls, identity_of

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Metrics name every service and node of the cluster: a node may not read those of others.
METRICS_READERS = frozenset({Role.METRICS, Role.USER, Role.MEMBER})
# A connection that is being read from when we stop gets this long.
SHUTDOWN_S = 2.0
# A peer that has connected must be who it is within this time.
HANDSHAKE_S = 10.0
# The body of a request does not come to its end: it is in no encoding, or its sender has left.
BROKEN_OFF = (web.RequestPayloadError, ConnectionResetError)


@dataclass(frozen=True, slots=True)
class Route:
    """What answers GET of one path, and for whom."""

    path: str
    handler: Handler
    readers: frozenset[Role] = METRICS_READERS


@asynccontextmanager
async def serve(
    *,
    listen: str,
    tls: ServerTls | None,
    routes: Iterable[Route],
    on_refused: Refused | None = None,
    on_denied: Callable[[str, str], None] = lambda peer, sentence: None,
) -> AsyncIterator[str]:
    """Serve for the length of the block; yield the address, with the port that was opened.

    Args:
        listen: HOST:PORT; an IPv6 host stands in brackets; port 0 is any free one.
        tls: None serves in clear text, to anybody: an operator's explicit choice.
        on_refused: is told of each handshake that fails.
        on_denied: is told of each request that its caller may not make: where from, and why.

    Raises:
        OSError: the address cannot be listened on.
        ValueError: ``listen`` is no HOST:PORT.
    """
    app = web.Application()
    for route in routes:
        app.router.add_get(route.path, route.handler if tls is None else _guarded(route, on_denied))
    context = None if tls is None else tls.server_context(on_refused)
    async with listening(app, listen=listen, context=context) as address:
        yield address


@asynccontextmanager
async def listening(
    app: web.Application,
    *,
    listen: str,
    context: ssl.SSLContext | None,
    connection_s: float | None = None,
) -> AsyncIterator[str]:
    """Serve an application of any kind; arguments and errors as of `serve`.

    Args:
        connection_s: for strangers: a connection is closed after this time, whatever it is at.
    """
    host, port = split_address(listen)
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(app, access_log=None, logger=_http_log(), shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    serve_connection = runner.server
    if serve_connection is None:
        raise RuntimeError("the web server has not been set up")

    def connected() -> asyncio.Protocol:
        connection = serve_connection()
        if connection_s is not None:
            loop.call_later(connection_s, connection.force_close)
        return connection

    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(runner.cleanup)
        opened = port
        for family, address in await _addresses(host, port):
            listener = cleanup.enter_context(_listener(family, address))
            server = await loop.create_server(
                connected,
                sock=listener,
                ssl=context,
                ssl_handshake_timeout=None if context is None else HANDSHAKE_S,
            )
            cleanup.callback(server.close)
            opened = listener.getsockname()[1]
        yield f"[{host}]:{opened}" if ":" in host else f"{host}:{opened}"


class _NoHttp(logging.Filter):
    """Has what peers send in place of HTTP be a line now and then, not a traceback each time."""

    def __init__(self) -> None:
        super().__init__()
        self._said = Seldom()

    def filter(self, record: logging.LogRecord) -> bool:
        fault = record.exc_info[1] if record.exc_info else None
        if not isinstance(fault, (HttpProcessingError, *BROKEN_OFF)):
            return True
        reason = plain(str(fault), most=100)
        peer = record.args[0] if isinstance(record.args, tuple) and record.args else "somebody"
        record.msg, record.args = "a request from %s is no HTTP: %s", (peer, reason)
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = None
        return self._said.due(time.monotonic())


def _http_log() -> logging.Logger:
    """Return what one web server logs to."""
    http = logging.Logger(f"{__name__}.http")
    http.parent = log
    http.addFilter(_NoHttp())
    return http


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Return all that a name stands for: localhost is two, if the machine has IPv6."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = NotedSocket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(address)
    except OSError as fault:
        listener.close()
        reason = (fault.strerror or "").lower()
        raise OSError(
            fault.errno, f"cannot listen on {address[0]}:{address[1]}: {reason}"
        ) from None
    return listener


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT.

    Raises:
        ValueError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def caller_of(request: web.Request) -> Identity:
    """Read who asks from the certificate that TLS has verified.

    Raises:
        ValueError: the certificate names no role of ours.
    """
    session = request.get_extra_info("ssl_object")
    certificate = session.getpeercert(binary_form=True) if session is not None else None
    if certificate is None:
        raise ValueError("the caller has shown no certificate")
    return identity_of(ssl.DER_cert_to_PEM_cert(certificate).encode())


def _guarded(route: Route, on_denied: Callable[[str, str], None]) -> Handler:
    readers = ", ".join(sorted(role.removeprefix("estiba:") for role in route.readers))

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            caller = caller_of(request)
        except ValueError as unknown:
            fault = str(unknown)
        else:
            # A connection may last longer, and one that was resumed was not verified again.
            fault = caller.ended(time.time())
            if not fault and caller.role in route.readers:
                return await route.handler(request)
            fault = fault or f"{caller} may not read {route.path}; it is for: {readers}"
        on_denied(request.remote or "an unknown address", fault)
        refusal = web.Response(status=403, text=f"{fault}\n")
        # Whoever has a better certificate by now shows it on the next connection.
        refusal.force_close()
        return refusal

    return answer


# ---------------------------------------------------------------------------- what all serve


def registry_for(program: str) -> CollectorRegistry:
    """Make a program's registry: which version it is, and what its own process uses."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    build = Gauge(
        "estiba_build_info",
        "Always 1; the labels say what runs.",
        ("program", "version", "python"),
        registry=registry,
    )
    build.labels(program, importlib.metadata.version("estiba"), platform.python_version()).set(1)
    return registry


def metrics_route(
    registry: CollectorRegistry, *, before: Callable[[], Awaitable[None]] | None = None
) -> Route:
    """Serve a registry at /metrics, in the format the scraper asks for.

    Collectors are called on the event loop, so they must be quick: what takes longer is
    gathered by ``before``, which is awaited first.
    """

    async def answer(request: web.Request) -> web.Response:
        if before is not None:
            await before()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    return Route("/metrics", answer)


def health_route(fault: Callable[[], str]) -> Route:
    """Serve /healthz: 200, or 503 with the sentence that ``fault`` returns when all is not well."""

    async def answer(request: web.Request) -> web.Response:
        del request
        sentence = fault()
        return web.Response(status=503 if sentence else 200, text=f"{sentence or 'ok'}\n")

    return Route("/healthz", answer, readers=frozenset(Role))
