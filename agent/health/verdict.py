"""Decide whether a task is healthy from the results of its checks. Pure.

A task is starting until its first success, and unhealthy after so many failures in a
row. Failures do not count within the start period, nor within the first interval, so
a check may be tried early and often to find a task healthy soon.
"""

from dataclasses import dataclass

from estiba.v1 import types_pb2 as v1
from estiba.wire import duration_s

DEFAULT_S = 30.0
DEFAULT_RETRIES = 3
WHILE_STARTING_S = 0.5


@dataclass(frozen=True, slots=True)
class Rules:
    interval_s: float
    timeout_s: float
    retries: int
    start_period_s: float


@dataclass(frozen=True, slots=True)
class CheckResult:
    ok: bool
    message: str = ""
    """Why it failed, half a sentence."""


@dataclass(frozen=True, slots=True)
class Verdict:
    health: "v1.Health.ValueType" = v1.HEALTH_STARTING
    failures: int = 0
    """In a row, that count."""
    message: str = ""


def rules_of(check: v1.HealthCheck) -> Rules:
    """Read the rules, with their defaults."""
    return Rules(
        interval_s=duration_s(check.interval) or DEFAULT_S,
        timeout_s=duration_s(check.timeout) or DEFAULT_S,
        retries=check.retries or DEFAULT_RETRIES,
        start_period_s=duration_s(check.start_period),
    )


def judge(rules: Rules, before: Verdict, result: CheckResult, *, since_start_s: float) -> Verdict:
    """Return the verdict after one more result."""
    if result.ok:
        return Verdict(v1.HEALTH_HEALTHY)
    starting = before.health == v1.HEALTH_STARTING
    if starting and since_start_s < max(rules.start_period_s, rules.interval_s):
        message = f"not healthy yet: {result.message}"
        return Verdict(v1.HEALTH_STARTING, before.failures, message)
    failures = before.failures + 1
    if failures >= rules.retries:
        times = "a check" if failures == 1 else f"{failures} checks in a row"
        return Verdict(
            v1.HEALTH_UNHEALTHY, failures, f"unhealthy: {times} failed, the last: {result.message}"
        )
    message = f"check {failures} of {rules.retries} failed: {result.message}"
    return Verdict(before.health, failures, message)


def pause_s(rules: Rules, verdict: Verdict) -> float:
    """Return how long to wait before the next check."""
    if verdict.health == v1.HEALTH_STARTING and verdict.failures == 0:
        return min(rules.interval_s, WHILE_STARTING_S)
    return rules.interval_s
