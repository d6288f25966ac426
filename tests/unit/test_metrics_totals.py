"""A task's counters over all its runs."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.metrics.totals import MOST_LINES, Total, Totals, Used
from tests.support.metrics import Stats

readings = st.builds(Used, *(st.integers(0, 1000) for _ in range(3)))


@given(st.lists(st.tuples(st.integers(1, 4), readings)))
def test_no_counter_ever_goes_back(taken: list[tuple[int, Used]]) -> None:
    total = Total()
    for run, reading in taken:
        after = total.after(run, reading)
        assert after.used.at_least(total.used) == after.used
        assert after.after(run, reading) == after
        total = after


def test_a_task_has_used_what_all_its_runs_have_used(tmp_path: Path) -> None:
    totals = Totals(tmp_path / "totals.jsonl")
    totals.observe("svc.1.1.1-r1", Stats(cpu_ns=100, oom_kills=1))
    totals.observe("svc.1.1.1-r1", Stats(cpu_ns=150, oom_kills=1))
    totals.observe("svc.1.1.1-r2", Stats(cpu_ns=10))
    totals.observe("svc.2.1.1-r1", Stats(cpu_ns=7))
    assert totals.of("svc.1.1.1") == Used(cpu_ns=160, oom_kills=1)
    assert totals.of("svc.2.1.1") == Used(cpu_ns=7)


def test_what_ended_runs_used_outlives_the_agent(tmp_path: Path) -> None:
    totals = Totals(tmp_path / "totals.jsonl")
    totals.observe("svc.1.1.1-r1", Stats(cpu_ns=100, throttled_ns=5, oom_kills=1))
    totals.save("svc.1.1.1-r1")

    again = Totals(tmp_path / "totals.jsonl")

    assert again.of("svc.1.1.1") == Used(100, 5, 1)
    again.observe("svc.1.1.1-r2", Stats(cpu_ns=1))
    assert again.of("svc.1.1.1") == Used(101, 5, 1)


def test_a_damaged_line_costs_its_counts_alone(tmp_path: Path) -> None:
    path = tmp_path / "totals.jsonl"
    totals = Totals(path)
    totals.observe("t-r1", Stats(cpu_ns=5))
    totals.save("t-r1")
    good = path.read_text()
    for line in ("[]", "3", '{"task": "t"}', '{"task": "t", "earlier": 1, "run": 1}', good[:30]):
        path.write_text(f"{good}{line}\n")
        assert Totals(path).of("t") == Used(cpu_ns=5)


def test_the_file_of_totals_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "totals.jsonl"
    totals = Totals(path)
    for run in range(1, 3 * MOST_LINES):
        totals.observe(f"t-r{run}", Stats(cpu_ns=1))
        totals.save(f"t-r{run}")
    assert len(path.read_text().splitlines()) <= MOST_LINES + 2
    assert Totals(path).of("t") == totals.of("t")


def test_a_task_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    totals = Totals(tmp_path / "totals.jsonl")
    totals.observe("gone-r1", Stats(cpu_ns=1))
    totals.observe("kept-r1", Stats(cpu_ns=2))
    totals.keep_only(["kept", "new"])
    assert (totals.of("gone"), totals.of("kept")) == (Used(), Used(cpu_ns=2))
