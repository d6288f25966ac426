"""Ask one registry about one repository: which content a tag means, manifests, blobs.

Source: the OCI distribution specification, "Pull".
"""

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from agent.errors import ImageError
from agent.images.manifest import MEDIA_TYPES
from agent.images.reference import is_digest
from agent.images.tokens import Tokens
from agent.images.transport import Endpoints, Transport, UnansweredError

MAX_MANIFEST_BYTES = 4 << 20
CHUNK_BYTES = 1 << 20

_ACCEPT = {"Accept": ", ".join(MEDIA_TYPES)}


@dataclass(frozen=True, slots=True)
class Body:
    """Content from ``offset`` on; 0 if the registry would not continue in the middle."""

    offset: int
    chunks: AsyncIterator[bytes]


class Repository:
    """One repository. ``name`` is its path in the registry."""

    def __init__(
        self, transport: Transport, endpoints: Endpoints, tokens: Tokens, registry: str, name: str
    ) -> None:
        self._transport = transport
        self._endpoints = endpoints
        self._tokens = tokens
        self._registry = registry
        self._name = name

    async def digest_of(self, tag: str) -> str:
        """Ask what a tag means now, without fetching it if the registry can do that.

        Raises:
            UnansweredError: the registry does not answer.
            ImageError: there is no such tag, or it is not for everyone.
        """
        async with self._request("HEAD", f"manifests/{tag}", _ACCEPT) as response:
            digest = response.headers.get("Docker-Content-Digest", "")
        if is_digest(digest):
            return digest
        # Not every registry says so; the digest is over what it serves in any case.
        return f"sha256:{hashlib.sha256(await self.manifest(tag)).hexdigest()}"

    async def manifest(self, tag_or_digest: str) -> bytes:
        """Fetch a manifest, not yet verified."""
        async with self._request("GET", f"manifests/{tag_or_digest}", _ACCEPT) as response:
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_MANIFEST_BYTES:
                    raise ImageError(f"its manifest is larger than {MAX_MANIFEST_BYTES} bytes")
            return bytes(content)

    @asynccontextmanager
    async def blob(self, digest: str, offset: int) -> AsyncIterator[Body]:
        """Fetch a blob from ``offset`` on."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._request("GET", f"blobs/{digest}", headers) as response:
            start = offset if response.status == 206 else 0
            if start and not response.headers.get("Content-Range", "").startswith(
                f"bytes {offset}-"
            ):
                raise UnansweredError(f"registry {self._registry} continues at the wrong place")
            yield Body(start, response.content.iter_chunked(CHUNK_BYTES))

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield a good answer; get a token first if the registry asks for one."""
        for attempt in (1, 2):
            url = self._endpoints.base(self._registry) / "v2" / self._name / path
            sent = {**headers, **self._tokens.header(self._registry, self._name)}
            async with self._transport.request(method, url, sent) as response:
                if response.status in (200, 206):
                    yield response
                    return
                challenge = response.headers.get("WWW-Authenticate", "")
                if response.status != 401 or not challenge or attempt == 2:
                    raise self._refused(response)
            await self._tokens.get(self._transport, self._registry, self._name, challenge)

    def _refused(self, response: aiohttp.ClientResponse) -> ImageError:
        match response.status:
            case 404:
                return ImageError("not found in the registry")
            case 401 | 403:
                return ImageError("not in the registry, or not for everyone to read")
            case status:
                answer = f"{status} {response.reason or ''}".rstrip()
                return UnansweredError(f"registry {self._registry} answers with {answer}")
