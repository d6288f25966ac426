"""Reach registries: where each is, whom to trust there, redirects, and errors as sentences.

HTTPS always, but for a registry on loopback, which may speak plain HTTP as Docker allows.
Knows HTTP and TLS, and nothing of images.
"""

import asyncio
import ipaddress
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from agent.errors import ImageError
from agent.images.reference import DEFAULT_REGISTRY

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 30.0
MAX_REDIRECTS = 5
HTTPS_PORT = 443


@dataclass(frozen=True, slots=True)
class Registry:
    """Where a registry is, when its name does not say: HOST or HOST:PORT, and its authority.

    An address that is an IP address is only dialled: the registry is still spoken to, and its
    certificate checked, under its own name. An address that is a name takes the name's place.
    Without ``ca`` the system's authorities are trusted.
    """

    address: str
    ca: Path | None = None


class UnansweredError(ImageError):
    """A registry gave no usable answer; what is known from before may serve instead."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    url: URL
    host_header: str | None
    server_name: str | None
    trust: ssl.SSLContext


class Endpoints:
    """The configured registries, and what is learned about others. Lives as long as the agent."""

    def __init__(self, registries: Mapping[str, Registry]) -> None:
        self._registries: dict[tuple[str, int], Registry] = {}
        for name, registry in registries.items():
            address = URL(f"https://{registry.address}")
            if not address.host:
                raise ImageError(f"registry {name}: {registry.address!r} is no address")
            self._registries[_key(URL(f"https://{name}"))] = registry
            if not _is_ip(address.host):
                # A registry redirects to itself under the name it is spoken to.
                self._registries.setdefault(_key(address), registry)
        self._trust: dict[Path | None, ssl.SSLContext] = {}
        self._plain: set[tuple[str, int]] = set()

    def base(self, registry: str) -> URL:
        """Return the URL of a registry's root, under its own name."""
        url = URL(f"https://{registry}/")
        return url.with_scheme("http") if _key(url) in self._plain else url

    def may_use(self, url: URL) -> bool:
        """Say whether a request may go there: with TLS anywhere, without it to loopback only."""
        return url.scheme == "https" or (url.scheme == "http" and self.may_be_plain(url))

    def may_be_plain(self, url: URL) -> bool:
        """Say whether this host may go without TLS: it is on loopback, and has no authority."""
        known = self._registries.get(_key(url))
        if not is_loopback(url.host or ""):
            return False
        if known is None:
            return True
        return known.ca is None and is_loopback(URL(f"http://{known.address}").host or "")

    def is_plain(self, url: URL) -> None:
        """Remember that this registry does not speak TLS."""
        self._plain.add(_key(url))

    async def find(self, url: URL) -> _Endpoint:
        """Return where to dial for this URL, and whom to trust there.

        Raises:
            UnansweredError: nothing says where it is.
            ImageError: the authority of this registry cannot be read.
        """
        known = self._registries.get(_key(url))
        if known is None and url.host == DEFAULT_REGISTRY:
            # It serves images under other names than its own, and those are for people to choose.
            table = f'[registries."{DEFAULT_REGISTRY}"]'
            raise UnansweredError(
                f"registry {DEFAULT_REGISTRY}, which names without a registry mean, "
                f"has no address on this node: set it in {table} of the agent's configuration"
            )
        if known is None:
            return _Endpoint(url, None, None, await self._trusted(None))
        address = URL(f"{url.scheme}://{known.address}")
        host = address.host or ""
        dialled = url.with_host(host).with_port(address.port)
        trust = await self._trusted(known.ca)
        if _is_ip(host):
            return _Endpoint(dialled, name_of(url), url.host, trust)
        return _Endpoint(dialled, None, None, trust)

    async def _trusted(self, ca: Path | None) -> ssl.SSLContext:
        if ca not in self._trust:
            cafile = str(ca) if ca else None
            try:
                # In a thread: the system's authorities are a large file.
                made = await asyncio.to_thread(ssl.create_default_context, cafile=cafile)
            except OSError as error:  # ssl.SSLError is one
                reason = error.strerror or str(error)
                raise ImageError(f"the authority in {ca} cannot be read: {reason}") from error
            self._trust[ca] = made
        return self._trust[ca]


class Transport:
    """Sends requests for one piece of work; close it with ``async with``."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S
            ),
            # What we ask for has digests over its exact bytes.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "estiba"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    @asynccontextmanager
    async def request(
        self, method: str, url: URL, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, follow redirects, and yield the answer, whatever its status.

        Raises:
            UnansweredError: no answer, or it broke off while the caller was reading.
        """
        response = await self._follow(method, url, headers)
        try:
            yield response
        except (aiohttp.ClientError, OSError) as error:
            raise _unanswered(response.url, error) from error
        finally:
            response.close()

    def may_use(self, url: URL) -> bool:
        return self._endpoints.may_use(url)

    async def _follow(
        self, method: str, url: URL, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        sent = dict(headers)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send(method, url, sent)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                return response
            response.close()
            target = url.join(parse_url(location, name_of(url)))
            if not self._endpoints.may_use(target):
                raise ImageError(f"registry {name_of(url)} redirects to where there is no TLS")
            if _key(target) != _key(url):
                # A token is for the registry alone, not for where it stores its blobs.
                sent.pop("Authorization", None)
            url = target
        raise ImageError(f"registry {name_of(url)} redirects without end")

    async def _send(
        self, method: str, url: URL, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        endpoint = await self._endpoints.find(url)
        sent = dict(headers)
        if endpoint.host_header is not None:
            sent["Host"] = endpoint.host_header
        try:
            return await self._session.request(
                method,
                endpoint.url,
                headers=sent,
                allow_redirects=False,
                ssl=endpoint.trust,
                server_hostname=endpoint.server_name,
            )
        except aiohttp.ClientConnectorSSLError as error:
            if url.scheme == "https" and self._endpoints.may_be_plain(url):
                self._endpoints.is_plain(url)
                return await self._send(method, url.with_scheme("http"), headers)
            raise _unanswered(url, error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _unanswered(url, error) from error


def parse_url(text: str, sender: str) -> URL:
    """Read a URL that a registry sent."""
    try:
        return URL(text)
    except ValueError as error:
        raise ImageError(f"registry {sender} sends a URL that is none") from error


def name_of(url: URL) -> str:
    """Return the host, and the port if it is not the scheme's own."""
    return url.host_port_subcomponent or "without a host"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    return _is_ip(host) and ipaddress.ip_address(host).is_loopback


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _key(url: URL) -> tuple[str, int]:
    # The port as written: a registry may be known as plain or not under the same name.
    return url.host or "", url.explicit_port or HTTPS_PORT


def _unanswered(url: URL, error: Exception) -> UnansweredError:
    name = name_of(url)
    match error:
        case aiohttp.ClientConnectorCertificateError():
            cause = error.certificate_error
            reason = getattr(cause, "verify_message", "") or str(cause)
            return UnansweredError(f"registry {name} shows a certificate not trusted: {reason}")
        case aiohttp.ClientConnectorSSLError():
            return UnansweredError(f"registry {name} does not speak TLS as it should")
        case aiohttp.ClientConnectorDNSError():
            return UnansweredError(f"registry {name} does not answer: its name is not known")
        case aiohttp.ClientConnectorError() if error.os_error.errno:
            reason = os.strerror(error.os_error.errno).lower()
        case asyncio.TimeoutError():
            reason = "it takes too long"
        case aiohttp.ClientResponseError():
            reason = "what it sends is not HTTP"
        case _:
            reason = "the connection broke"
    return UnansweredError(f"registry {name} does not answer: {reason}")
