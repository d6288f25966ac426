"""Metrics and health over mutual TLS, asked by real clients with real certificates."""

import asyncio
import datetime
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from controlplane.authority import issuing
from controlplane.authority.issuing import Holder
from estiba.kit.lag import LagMonitor
from estiba.kit.serve import Route, health_route, metrics_route, registry_for, serve
from estiba.kit.tls import AGENT_SERVER_NAME, MEMBER_SERVER_NAME, Role, TlsFiles
from tests.support.certificates import Certificates, issue
from tests.support.promtool import complaints_about
from tests.support.waiting import stretched


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("pki"))


class Health:
    fault = ""


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def address(certificates: Certificates, health: Health) -> AsyncIterator[str]:
    registry = registry_for("estibad")
    Counter("estiba_things_total", "Things.", registry=registry).inc()
    routes = [metrics_route(registry), health_route(lambda: health.fault)]
    tls = certificates.of("estibad-1")
    async with serve(listen="127.0.0.1:0", tls=tls, routes=routes) as opened:
        yield opened


async def ask(
    address: str,
    path: str,
    tls: TlsFiles,
    *,
    server_name: str = MEMBER_SERVER_NAME,
    accept: str = "*/*",
) -> tuple[int, str, str]:
    """Return status, content type and text."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"https://{address}{path}",
            ssl=tls.client_context(),
            server_hostname=server_name,
            headers={"Accept": accept},
        ) as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.text()


@pytest.mark.parametrize("holder", ["metrics", "user", "estibad-2"])
async def test_metrics_are_served_to_those_who_may_read_them(
    address: str, certificates: Certificates, holder: str
) -> None:
    status, kind, text = await ask(address, "/metrics", certificates.of(holder))
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert "\nestiba_things_total 1.0\n" in text
    assert '\nestiba_build_info{program="estibad",python="3.' in text
    assert "\nprocess_cpu_seconds_total " in text


async def test_a_connection_that_outlives_its_certificate_is_closed(
    address: str, certificates: Certificates
) -> None:
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=stretched(3))
    holder = Holder(Role.METRICS, "short-lived")
    tls = certificates.made("short-lived", holder, at=ends + issuing.BEFORE - issuing.LIFE)
    connector = aiohttp.TCPConnector(ssl=tls.client_context(), limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def get() -> tuple[int, str, str]:
            wanted = session.get(f"https://{address}/metrics", server_hostname=MEMBER_SERVER_NAME)
            async with wanted as answer:
                return answer.status, await answer.text(), answer.headers.get("Connection", "")

        status, _, connection = await get()
        assert (status, connection) == (200, "")
        while (await get())[0] == 200:
            assert time.time() < ends.timestamp() + 2
            await asyncio.sleep(0.1)
        # On a connection of its own it is not let in at all.
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await get()


async def test_a_node_may_not_read_metrics_and_is_told_who_may(
    address: str, certificates: Certificates
) -> None:
    status, _, text = await ask(address, "/metrics", certificates.of("n1"))
    assert status == 403
    assert text == "node:node-1 may not read /metrics; it is for: member, metrics, user\n"


async def test_a_certificate_without_a_role_of_ours_opens_nothing(
    address: str, certificates: Certificates
) -> None:
    status, _, text = await ask(address, "/healthz", certificates.of_stranger("estiba:registry"))
    assert (status, text) == (403, "'estiba:registry' is not a valid Role\n")


async def test_a_caller_without_a_certificate_is_not_even_heard(
    address: str, certificates: Certificates
) -> None:
    context = ssl.create_default_context(cafile=str(certificates.of("user").ca))
    async with aiohttp.ClientSession() as session:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await session.get(
                f"https://{address}/metrics", ssl=context, server_hostname=MEMBER_SERVER_NAME
            )


async def test_a_certificate_of_another_authority_is_refused(
    address: str, certificates: Certificates, tmp_path: Path
) -> None:
    stranger = issue(tmp_path).of("user")
    forged = TlsFiles(certificates.of("user").ca, stranger.cert, stranger.key)
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await ask(address, "/metrics", forged)


async def test_a_member_is_not_taken_for_an_agent(address: str, certificates: Certificates) -> None:
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await ask(address, "/metrics", certificates.of("user"), server_name=AGENT_SERVER_NAME)


async def test_health_is_for_every_role_and_says_what_is_wrong(
    address: str, certificates: Certificates, health: Health
) -> None:
    assert (await ask(address, "/healthz", certificates.of("n1")))[::2] == (200, "ok\n")
    health.fault = "the store does not answer"
    assert (await ask(address, "/healthz", certificates.of("n1")))[::2] == (
        503,
        "the store does not answer\n",
    )


async def test_openmetrics_are_served_to_those_who_ask_for_them(
    address: str, certificates: Certificates
) -> None:
    status, kind, text = await ask(
        address,
        "/metrics",
        certificates.of("metrics"),
        accept="application/openmetrics-text; version=1.0.0",
    )
    assert (status, kind.split(";")[0]) == (200, "application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_an_unknown_path_is_not_found(address: str, certificates: Certificates) -> None:
    assert (await ask(address, "/", certificates.of("user")))[0] == 404


async def test_what_takes_long_is_gathered_before_the_collectors_are_asked(
    certificates: Certificates,
) -> None:
    registry = CollectorRegistry()
    gathered = Counter("estiba_gathered_total", "Gathered.", registry=registry)

    async def gather() -> None:
        await asyncio.to_thread(gathered.inc)

    routes = [metrics_route(registry, before=gather)]
    async with serve(listen="127.0.0.1:0", tls=certificates.of("n1"), routes=routes) as address:
        files = certificates.of("metrics")
        _, _, text = await ask(address, "/metrics", files, server_name=AGENT_SERVER_NAME)
    assert "estiba_gathered_total 1.0" in text


async def test_a_plain_listener_serves_anybody(certificates: Certificates) -> None:
    registry = registry_for("estiba-agent")
    async with (
        serve(listen="127.0.0.1:0", tls=None, routes=[metrics_route(registry)]) as address,
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/metrics") as answer,
    ):
        assert answer.status == 200


async def test_after_the_block_nothing_listens(certificates: Certificates) -> None:
    tls = certificates.of("estibad-1")
    async with serve(listen="127.0.0.1:0", tls=tls, routes=[]) as address:
        pass
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(address, "/healthz", certificates.of("user"))


async def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_open(
    address: str, certificates: Certificates
) -> None:
    with pytest.raises(OSError, match="address already in use"):
        async with serve(listen=address, tls=None, routes=[]):
            pass


async def test_a_route_of_ones_own_is_guarded_like_the_others(certificates: Certificates) -> None:
    async def answer(request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response([])

    route = Route("/sd/targets", answer, readers=frozenset({Role.METRICS}))
    tls = certificates.of("estibad-1")
    async with serve(listen="127.0.0.1:0", tls=tls, routes=[route]) as address:
        assert (await ask(address, "/sd/targets", certificates.of("metrics")))[0] == 200
        assert (await ask(address, "/sd/targets", certificates.of("user")))[0] == 403


async def test_promtool_finds_nothing_on_what_every_program_serves() -> None:
    registry = registry_for("estibad")
    LagMonitor(registry)
    async with (
        serve(listen="127.0.0.1:0", tls=None, routes=[metrics_route(registry)]) as address,
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/metrics") as answer,
    ):
        exposition = await answer.read()
    assert complaints_about(exposition) == ""
