"""What happens around every call: the caller is named and checked, errors become statuses.

No call lasts longer than the certificate that it was made with.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from grpc import aio

from controlplane.api import access
from controlplane.api.status import INTERNAL, status_of
from controlplane.errors import CertificateEndedError, DeniedError, EstibaError
from estiba.kit.clock import Clock
from estiba.kit.tls import Identity

log = logging.getLogger(__name__)

Context = aio.ServicerContext[Any, Any]
# In quotes, since grpcio's own class is generic for the type checker alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Guard(aio.ServerInterceptor):
    """Wraps every handler of the server; ``on_denied`` is told of each refused call."""

    def __init__(self, on_denied: Callable[[], None], clock: Clock) -> None:
        self._on_denied = on_denied
        self._clock = clock

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        return self._wrap(handler, handler_call_details.method) if handler else None

    def _wrap(self, handler: Handler, method: str) -> Handler:
        inner: Any = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        async def one(request: Any, context: Context) -> Any:
            async with self._around(method, context):
                return await inner(request, context)

        async def many(request: Any, context: Context) -> None:
            # A coroutine that writes, not a generator: when the call is cancelled, the handler's
            # generator is closed here and now, in the asyncio task that ran it.
            async with self._around(method, context):
                answers = inner(request, context)
                if not hasattr(answers, "__aiter__"):
                    await answers
                    return
                async with aclosing(answers):
                    async for answer in answers:
                        await context.write(answer)

        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.request_streaming:
            if handler.response_streaming:
                return grpc.stream_stream_rpc_method_handler(many, *codecs)
            return grpc.stream_unary_rpc_method_handler(one, *codecs)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(many, *codecs)
        return grpc.unary_unary_rpc_method_handler(one, *codecs)

    @asynccontextmanager
    async def _around(self, method: str, context: Context) -> AsyncIterator[None]:
        try:
            caller = self._admit(method, context)
            async with self._while_it_is_good(caller):
                yield
        except (DeniedError, CertificateEndedError) as error:
            self._on_denied()
            log.warning("refused %s to %s: %s", method.strip("/"), context.peer(), error)
            await context.abort(*status_of(error))
        except EstibaError as error:
            await context.abort(*status_of(error))
        except aio.AbortError:
            raise
        except Exception:
            log.exception("%s failed", method)
            await context.abort(grpc.StatusCode.INTERNAL, INTERNAL)

    def _admit(self, method: str, context: Context) -> Identity:
        """Raise DeniedError for a call that the table does not grant."""
        identity = access.identify(context.auth_context())
        access.check(identity, method)
        access.CALLER.set(identity)
        return identity

    @asynccontextmanager
    async def _while_it_is_good(self, caller: Identity) -> AsyncIterator[None]:
        """Raise CertificateEndedError once the caller's certificate has ended."""
        remaining_s = caller.ends_at_s - self._clock.now()
        if remaining_s <= 0:
            raise CertificateEndedError(caller.ended(self._clock.now()))
        try:
            async with asyncio.timeout(remaining_s) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise CertificateEndedError(caller.ended(caller.ends_at_s)) from None
