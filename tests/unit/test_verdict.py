"""When a task is healthy, and when it is not."""

from hypothesis import given
from hypothesis import strategies as st

from agent.health.verdict import CheckResult, Rules, Verdict, judge, pause_s, rules_of
from estiba.v1 import types_pb2 as v1
from estiba.wire import duration

OK = CheckResult(ok=True)
BAD = CheckResult(ok=False, message="exit code 1")
STARTING, HEALTHY, UNHEALTHY = v1.HEALTH_STARTING, v1.HEALTH_HEALTHY, v1.HEALTH_UNHEALTHY
RULES = Rules(interval_s=5, timeout_s=1, retries=3, start_period_s=20)


def judged(results: list[tuple[float, CheckResult]], rules: Rules = RULES) -> Verdict:
    verdict = Verdict()
    for since_start_s, result in results:
        verdict = judge(rules, verdict, result, since_start_s=since_start_s)
    return verdict


def test_the_first_success_makes_a_task_healthy() -> None:
    assert judged([(1, OK)]) == Verdict(HEALTHY)


def test_failures_within_the_start_period_do_not_count() -> None:
    verdict = judged([(second, BAD) for second in range(19)])

    assert verdict.health == STARTING
    assert verdict.message == "not healthy yet: exit code 1"


def test_after_the_start_period_failures_count() -> None:
    assert judged([(20, BAD), (25, BAD)]).health == STARTING
    verdict = judged([(20, BAD), (25, BAD), (30, BAD)])
    assert verdict.health == UNHEALTHY
    assert verdict.message == "unhealthy: 3 checks in a row failed, the last: exit code 1"


def test_a_success_ends_the_start_period() -> None:
    assert judged([(1, OK), (2, BAD), (3, BAD), (4, BAD)]).health == UNHEALTHY


def test_a_success_between_failures_starts_the_count_again() -> None:
    assert judged([(1, OK), (30, BAD), (35, BAD), (40, OK), (45, BAD)]).health == HEALTHY


def test_without_a_start_period_failures_of_the_first_interval_do_not_count() -> None:
    rules = Rules(interval_s=5, timeout_s=1, retries=1, start_period_s=0)

    assert judged([(0.5, BAD), (1, BAD)], rules).health == STARTING
    assert judged([(5, BAD)], rules).message == "unhealthy: a check failed, the last: exit code 1"


def test_a_starting_task_is_asked_often_and_a_healthy_one_at_its_interval() -> None:
    assert pause_s(RULES, Verdict()) == 0.5
    assert pause_s(RULES, Verdict(HEALTHY)) == 5
    assert pause_s(RULES, Verdict(STARTING, failures=1)) == 5


def test_what_a_check_leaves_open_has_the_documented_values() -> None:
    check = v1.HealthCheck(tcp=v1.TcpCheck(port=80))
    assert rules_of(check) == Rules(30, 30, 3, 0)

    check = v1.HealthCheck(interval=duration(0.5), retries=7, start_period=duration(3))
    assert rules_of(check) == Rules(0.5, 30, 7, 3)


@given(st.lists(st.booleans(), max_size=30))
def test_a_task_is_unhealthy_exactly_after_so_many_failures_in_a_row(oks: list[bool]) -> None:
    rules = Rules(interval_s=1, timeout_s=1, retries=3, start_period_s=0)
    verdict, row = Verdict(), 0
    for second, ok in enumerate(oks, start=1):
        verdict = judge(rules, verdict, OK if ok else BAD, since_start_s=second)
        row = 0 if ok else row + 1
        assert (verdict.health == UNHEALTHY) == (row >= 3)
        if verdict.health == UNHEALTHY:
            return
