"""When the next run begins."""

from hypothesis import given
from hypothesis import strategies as st

from agent.tasks.restarts import after_run
from estiba.v1 import types_pb2 as v1
from estiba.wire import duration


def delays(policy: v1.RestartPolicy, runs: list[float | None]) -> list[float]:
    failures, found = 0, []
    for ran_s in runs:
        restart = after_run(policy, failures=failures, ran_s=ran_s)
        failures = restart.failures
        found.append(restart.delay_s)
    return found


def test_the_first_restart_comes_at_once_and_the_next_ones_later_and_later() -> None:
    assert delays(v1.RestartPolicy(), [1.0] * 6) == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6]


def test_the_delay_grows_to_a_minute_and_no_further() -> None:
    assert delays(v1.RestartPolicy(), [1.0] * 100)[-1] == 60.0


def test_a_run_of_ten_seconds_starts_the_count_again() -> None:
    assert delays(v1.RestartPolicy(), [1.0, 1.0, 1.0, 10.0, 1.0]) == [0.0, 0.1, 0.2, 0.0, 0.1]


def test_a_run_that_never_started_waits_from_the_first_time() -> None:
    assert delays(v1.RestartPolicy(), [None, None, None, None]) == [0.1, 0.1, 0.2, 0.4]


def test_a_policy_says_where_the_delay_begins_and_ends() -> None:
    policy = v1.RestartPolicy(initial_delay=duration(2), max_delay=duration(5))

    assert delays(policy, [1.0] * 5) == [0.0, 2.0, 4.0, 5.0, 5.0]


@given(st.lists(st.one_of(st.none(), st.floats(0, 9.99)), min_size=1, max_size=80))
def test_without_a_lasting_run_delays_never_shrink(runs: list[float | None]) -> None:
    found = delays(v1.RestartPolicy(), runs)

    assert found == sorted(found)
    assert found[-1] <= 60.0
