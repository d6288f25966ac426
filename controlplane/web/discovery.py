"""Prometheus' HTTP service discovery: every estibad and every agent there is.

Format: https://prometheus.io/docs/prometheus/latest/http_sd/
"""

from collections.abc import Iterable, Iterator

from aiohttp import web

from controlplane.store.cache import Cache
from estiba.kit.serve import Route
from estiba.kit.tls import Role
from estiba.v1 import types_pb2 as v1

Target = dict[str, list[str] | dict[str, str]]


def targets(members: Iterable[v1.Member], nodes: Iterable[v1.Node]) -> Iterator[Target]:
    """Yield what there is to scrape; nodes that are down too, so that their absence is seen."""
    for member in sorted(members, key=lambda each: each.id):
        if member.web_address:
            yield _target(member.web_address, program="estibad", member=member.id)
    for node in sorted(nodes, key=lambda each: each.metadata.id):
        address = node.status.description.metrics_address
        if address:
            yield _target(
                address,
                program="agent",
                node=node.metadata.name,
                node_id=node.metadata.id,
            )


def _target(address: str, **labels: str) -> Target:
    named = {f"__meta_estiba_{name}": value for name, value in labels.items()}
    return {"targets": [address], "labels": named}


def discovery_route(cache: Cache) -> Route:
    async def answer(request: web.Request) -> web.Response:
        del request
        return web.json_response(list(targets(cache.members.values(), cache.nodes.values())))

    return Route("/sd/targets", answer)


def readiness_route(cache: Cache) -> Route:
    """Serve /readyz: 200 once this member has listed the store."""

    async def answer(request: web.Request) -> web.Response:
        del request
        if cache.ready.is_set():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="the store has not been listed yet\n")

    return Route("/readyz", answer, readers=frozenset(Role))
