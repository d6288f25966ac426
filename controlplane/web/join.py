"""The listener for machines that have no certificate yet: the authority, and one way in.

A joiner first reads the authority and compares it with its token, and says nothing before. What
it says then is a JoinRequest as JSON; the answer is a JoinResponse, or an object with the sentence
that says why not. A connection lasts no longer than it takes to join.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from aiohttp import web
from google.protobuf.json_format import MessageToDict, Parse, ParseError

from controlplane.api.joining import Joining
from controlplane.authority.admission import Outcome, Refusal
from estiba.kit.clock import Clock
from estiba.kit.handshakes import Refused
from estiba.kit.livetls import LiveTls
from estiba.kit.seldom import Seldom
from estiba.kit.serve import BROKEN_OFF, listening
from estiba.kit.text import plain
from estiba.v1 import certificates_pb2 as pb

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024
CONNECTION_S = 30.0
# Strangers may ask as often as they like, and are said to have now and then.
SAID_EVERY_S = 1.0

_STATUSES: Mapping[Outcome, HTTPStatus] = {
    Outcome.UNKNOWN: HTTPStatus.FORBIDDEN,
    Outcome.EXPIRED: HTTPStatus.FORBIDDEN,
    Outcome.USED_UP: HTTPStatus.FORBIDDEN,
    Outcome.REMOVED_NODE: HTTPStatus.FORBIDDEN,
    Outcome.INVALID: HTTPStatus.BAD_REQUEST,
    Outcome.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}


class JoinRoutes:
    """``count`` is told how each request to join ended."""

    def __init__(self, joining: Joining, clock: Clock, count: Callable[[Outcome], None]) -> None:
        self._joining = joining
        self._clock = clock
        self._count = count
        self._refused = Seldom(every_s=SAID_EVERY_S)
        self._unsaid = 0

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MOST_BYTES, middlewares=[_in_sentences])
        app.router.add_get("/v1/authority", self._authority)
        app.router.add_post("/v1/join", self._join)
        return app

    async def _authority(self, request: web.Request) -> web.Response:
        del request
        pem = self._joining.authority_pem
        return web.Response(body=pem, content_type="application/x-pem-file")

    async def _join(self, request: web.Request) -> web.Response:
        try:
            # JSON is UTF-8, whatever the headers say of it.
            body = (await request.read()).decode()
            asked = Parse(body, pb.JoinRequest(), ignore_unknown_fields=True)
        except (ParseError, UnicodeDecodeError, web.HTTPRequestEntityTooLarge, *BROKEN_OFF):
            # What it was is not repeated: it may hold a secret.
            sentence = f"the body is no JoinRequest in JSON of at most {MOST_BYTES} bytes"
            return self._answer(request, "", Refusal(Outcome.INVALID, sentence))
        result = await self._joining.join(asked)
        if isinstance(result, Refusal):
            return self._answer(request, asked.hostname, result)
        self._count(result.outcome)
        log.info(
            "%s at %s has joined as node %s with token %s: %s",
            *(asked.hostname, request.remote, result.response.node_id),
            *(asked.token_id, result.outcome),
        )
        return web.json_response(MessageToDict(result.response, preserving_proto_field_name=True))

    def _answer(self, request: web.Request, hostname: str, refusal: Refusal) -> web.Response:
        self._count(refusal.outcome)
        if self._refused.due(self._clock.monotonic()):
            log.warning(
                "refused to admit %s at %s: %s%s",
                plain(hostname, most=64) or "a machine",
                request.remote,
                refusal.sentence,
                f" ({self._unsaid} more before it)" if self._unsaid else "",
            )
            self._unsaid = 0
        else:
            self._unsaid += 1
        return _error(_STATUSES[refusal.outcome], refusal.sentence)


@asynccontextmanager
async def serve_joining(
    routes: JoinRoutes, *, listen: str, tls: LiveTls, on_refused: Refused
) -> AsyncIterator[str]:
    """Serve for the length of the block; yield the address.

    Raises:
        OSError: the address cannot be listened on.
    """
    context = tls.joining_context(on_refused)
    async with listening(
        routes.application(), listen=listen, context=context, connection_s=CONNECTION_S
    ) as address:
        yield address


@web.middleware
async def _in_sentences(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as fault:
        sentence = f"{request.method} {request.path[:100]}: {fault.reason.lower()}"
        return _error(HTTPStatus(fault.status), sentence)


def _error(status: HTTPStatus, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
