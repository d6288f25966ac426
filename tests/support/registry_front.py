"""A server in front of a real registry that counts, breaks off, redirects and asks for tokens."""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from tests.support.registry import RunningRegistry

HOP_HEADERS = ("Host", "Authorization", "Connection")


class Front:
    """Passes requests on to a plain registry. Set an attribute to make it misbehave."""

    def __init__(self, behind: RunningRegistry, session: aiohttp.ClientSession) -> None:
        self.behind = behind
        self._session = session
        self.name = ""
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        # A download of a blob breaks after this many bytes, this often.
        self.cut_after_bytes = 0
        self.cuts_left = 0
        self.ignores_ranges = False
        self.keeps_digests_to_itself = False
        # Or it stops after this many bytes until it may go on.
        self.holds_after_bytes = 0
        self.may_go_on = asyncio.Event()
        self.answers_status = 0
        self.challenge = ""
        self.redirects_blobs_to = ""
        # With a token service; what it gave out is what it accepts.
        self.wants_tokens = False
        self.tokens: set[str] = set()
        self.token_requests: list[dict[str, str]] = []
        self.leaked: list[str] = []

    def count(self, method: str, kind: str) -> int:
        return sum(m == method and f"/{kind}/" in path for m, path in self.requests)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if request.path == "/token":
            return self._give_token(request)
        if request.path.startswith("/elsewhere/"):
            self.leaked += request.headers.getall("Authorization", [])
            return await self._pass_on(request, request.path.removeprefix("/elsewhere"))
        if self.answers_status:
            headers = {"WWW-Authenticate": self.challenge} if self.challenge else {}
            return web.Response(status=self.answers_status, headers=headers)
        if self.wants_tokens and not self._is_known(request):
            repository = re.split("/(?:blobs|manifests)/", request.path)[0].removeprefix("/v2/")
            challenge = (
                f'Bearer realm="http://{self.name}/token",service="tests",'
                f'scope="repository:{repository}:pull"'
            )
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if self.redirects_blobs_to and "/blobs/" in request.path:
            place = f"{self.redirects_blobs_to}/elsewhere{request.path}"
            return web.Response(status=307, headers={"Location": place})
        return await self._pass_on(request, request.path)

    def _give_token(self, request: web.BaseRequest) -> web.Response:
        self.token_requests.append(dict(request.query))
        token = secrets.token_hex(16)
        self.tokens.add(token)
        return web.json_response({"token": token, "expires_in": 300})

    def _is_known(self, request: web.BaseRequest) -> bool:
        return request.headers.get("Authorization", "").removeprefix("Bearer ") in self.tokens

    async def _pass_on(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k not in HOP_HEADERS}
        if "Range" in headers:
            self.ranges.append(headers["Range"])
            if self.ignores_ranges:
                del headers["Range"]
        url = f"{self.behind.url}{path}"
        async with self._session.request(request.method, url, headers=headers) as behind:
            answer = web.StreamResponse(status=behind.status)
            for name in (
                "Content-Type",
                "Content-Length",
                "Content-Range",
                "Docker-Content-Digest",
            ):
                hidden = self.keeps_digests_to_itself and name == "Docker-Content-Digest"
                if name in behind.headers and not hidden:
                    answer.headers[name] = behind.headers[name]
            await answer.prepare(request)
            content = await behind.read()
            if self.cuts_left and "/blobs/" in path and len(content) > self.cut_after_bytes:
                self.cuts_left -= 1
                await answer.write(content[: self.cut_after_bytes])
                assert request.transport is not None
                request.transport.close()
                return answer
            if 0 < self.holds_after_bytes < len(content) and "/blobs/" in path:
                await answer.write(content[: self.holds_after_bytes])
                content = content[self.holds_after_bytes :]
                await self.may_go_on.wait()
            with contextlib.suppress(ConnectionError):
                await answer.write(content)
                await answer.write_eof()
        return answer


@asynccontextmanager
async def run_front(behind: RunningRegistry) -> AsyncIterator[Front]:
    """Run it on a port of 127.0.0.1, without TLS, until the end of the block."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        front = Front(behind, session)
        runner = web.ServerRunner(web.Server(front.answer))
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            front.name = f"127.0.0.1:{runner.addresses[0][1]}"
            yield front
        finally:
            await runner.cleanup()
