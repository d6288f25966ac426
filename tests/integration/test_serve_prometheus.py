"""A real Prometheus, with the configuration we ship, finds and scrapes both programs over TLS."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import Gauge

from estiba.kit.serve import Route, metrics_route, registry_for, serve
from estiba.kit.tls import Role
from tests.support.certificates import Certificates, issue
from tests.support.prometheus import CONFIGURATION, Prometheus, running_prometheus
from tests.support.promtool import complaints_about_configuration
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def discovery(certificates: Certificates) -> AsyncIterator[str]:
    """Serve one agent, and one estibad that lists itself and the agent."""
    groups: list[dict[str, object]] = []

    async def targets(request: web.Request) -> web.Response:
        return web.json_response(groups)

    agent_registry = registry_for("estiba-agent")
    tasks = Gauge("estiba_node_tasks", "Tasks.", ("node",), registry=agent_registry)
    tasks.labels("says another name").set(3)
    estibad_routes = [
        metrics_route(registry_for("estibad")),
        Route("/sd/targets", targets, readers=frozenset({Role.METRICS})),
    ]
    estibad_tls, agent_tls = certificates.of("estibad-1"), certificates.of("n1")
    async with (
        serve(listen="127.0.0.1:0", tls=estibad_tls, routes=estibad_routes) as estibad,
        serve(listen="127.0.0.1:0", tls=agent_tls, routes=[metrics_route(agent_registry)]) as agent,
    ):
        member = {"__meta_estiba_program": "estibad", "__meta_estiba_member": "estibad-1"}
        node = {"__meta_estiba_program": "agent", "__meta_estiba_node": "n1"}
        groups.append({"targets": [estibad], "labels": member})
        groups.append({"targets": [agent], "labels": node})
        yield estibad


async def test_prometheus_discovers_and_scrapes_both_programs(
    discovery: str, certificates: Certificates, tmp_path: Path
) -> None:
    files = certificates.of("metrics")

    def scraped() -> dict[str, object]:
        with running_prometheus(tmp_path, discovery=discovery, tls=files) as prometheus:
            eventually(
                lambda: prometheus.value("sum(up)") == 2, within_s=30, what="both targets are up"
            )
            return {
                "programs": labels(prometheus, "estiba_build_info", "program", "job"),
                "targets": labels(prometheus, "up", "job", "member", "node"),
                "tasks": labels(prometheus, "estiba_node_tasks", "node", "exported_node"),
            }

    assert await asyncio.to_thread(scraped) == {
        "programs": {("estibad", "estibad"), ("estiba-agent", "estiba-agent")},
        "targets": {("estibad", "estibad-1", ""), ("estiba-agent", "", "n1")},
        "tasks": {("n1", "")},
    }


def labels(prometheus: Prometheus, series: str, *names: str) -> set[tuple[str, ...]]:
    found = prometheus.ask("/api/v1/query", query=series)["result"]
    return {tuple(each["metric"].get(name, "") for name in names) for each in found}


def test_promtool_accepts_the_configuration(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    files = certificates.of("metrics")
    for path, name in ((files.ca, "ca"), (files.cert, "metrics")):
        (tmp_path / "tls" / f"{name}.pem").write_bytes(path.read_bytes())
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(CONFIGURATION.read_text())
    assert complaints_about_configuration(configuration) == ""
