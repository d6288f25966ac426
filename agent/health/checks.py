"""Carry out one health check: a command inside the container, an HTTP request, a connection.

HTTP and TCP go from the node to the container's own address, so a check sees what
another node's request would see, without the load balancer.
"""

import asyncio
from collections.abc import Callable

import aiohttp

from agent.errors import LauncherLostError, LaunchError
from agent.health.verdict import CheckResult, Rules, Verdict, judge, pause_s, rules_of
from agent.tasks.ports import Launcher
from estiba.kit.clock import Clock
from estiba.v1 import types_pb2 as v1

OUTPUT_SHOWN = 200


class Checks:
    """Every check of one node; the HTTP connections are never kept."""

    def __init__(self, launcher: Launcher, clock: Clock) -> None:
        self._launcher = launcher
        self._clock = clock

    async def watch(
        self,
        check: v1.HealthCheck,
        container_id: str,
        address: str,
        *,
        started_at_s: float,
        before: Verdict,
        changed: Callable[[Verdict], None],
    ) -> None:
        """Check until the verdict is unhealthy; tell ``changed`` of every new verdict."""
        rules = rules_of(check)
        verdict = before
        while verdict.health != v1.HEALTH_UNHEALTHY:
            await self._clock.sleep(pause_s(rules, verdict))
            try:
                result = await self._check(check, rules, container_id, address)
            except LauncherLostError:
                # It says nothing about the container, which goes on without the launcher.
                continue
            since_start_s = self._clock.now() - started_at_s
            after = judge(rules, verdict, result, since_start_s=since_start_s)
            if (after.health, after.message) != (verdict.health, verdict.message):
                changed(after)
            verdict = after

    async def _check(
        self, check: v1.HealthCheck, rules: Rules, container_id: str, address: str
    ) -> CheckResult:
        kind = check.WhichOneof("kind")
        if kind == "exec":
            return await self._exec(list(check.exec.command), rules, container_id)
        try:
            async with asyncio.timeout(rules.timeout_s):
                if kind == "http":
                    return await _http(address, check.http.port, check.http.path)
                return await _tcp(address, check.tcp.port)
        except TimeoutError:
            return _late(rules)

    async def _exec(self, command: list[str], rules: Rules, container_id: str) -> CheckResult:
        try:
            ended = await self._launcher.exec(container_id, command, timeout_s=rules.timeout_s)
        except LaunchError as fault:
            return CheckResult(ok=False, message=str(fault))
        if ended.timed_out:
            return _late(rules)
        if ended.exit_code == 0:
            return CheckResult(ok=True)
        said = ended.output.decode(errors="replace").strip()[:OUTPUT_SHOWN]
        return CheckResult(
            ok=False, message=f"exit code {ended.exit_code}" + (f": {said}" if said else "")
        )


def _late(rules: Rules) -> CheckResult:
    return CheckResult(ok=False, message=f"no answer within {rules.timeout_s:g} s")


async def _http(address: str, port: int, path: str) -> CheckResult:
    where = f"http://{address}:{port}/{path.lstrip('/')}"
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
            session.get(where, allow_redirects=False) as answer,
        ):
            if 200 <= answer.status <= 399:
                return CheckResult(ok=True)
            return CheckResult(ok=False, message=f"{where} answered {answer.status}")
    except aiohttp.ClientError as fault:
        return CheckResult(ok=False, message=f"{where} does not answer: {fault}")


async def _tcp(address: str, port: int) -> CheckResult:
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError as fault:
        return CheckResult(
            ok=False, message=f"{address}:{port} does not answer: {fault.strerror or fault}"
        )
    writer.close()
    return CheckResult(ok=True)
