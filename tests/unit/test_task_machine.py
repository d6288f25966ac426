"""The next step of a task, and its status after what happened."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tasks import machine, results
from agent.tasks.machine import Record, advance, next_step
from estiba.model import DesiredState, TaskState
from estiba.v1 import types_pb2 as v1
from estiba.wire import NOTES_KEPT, report_order, seconds, timestamp

READY, RUNNING = DesiredState.READY, DesiredState.RUNNING
SHUTDOWN, REMOVE = DesiredState.SHUTDOWN, DesiredState.REMOVE
POLICY = v1.RestartPolicy()
NOW_S = 1_700_000_000.0


@dataclass(frozen=True)
class Ended:
    exit_code: int | None = 0
    signal: int | None = None
    oom_killed: bool = False
    started_at: float = NOW_S
    ended_at: float = NOW_S + 1


def new(*, last_run: int = 0, desired: DesiredState = RUNNING) -> Record:
    return machine.new_record(last_run=last_run, last_seq=0, desired=desired, now_s=NOW_S)


def ended(record: Record, how: Ended, *, memory_limit_bytes: int = 0) -> machine.RunEnded:
    result = results.of_exit(record.run, how, memory_limit_bytes=memory_limit_bytes)
    return machine.RunEnded(result, POLICY)


def after(record: Record, *events: machine.Event, now_s: float = NOW_S) -> Record:
    for event in events:
        record = advance(record, event, now_s=now_s)
    return record


def running(*, checked: bool = False, last_run: int = 0) -> Record:
    record = new(last_run=last_run)
    return after(
        record,
        machine.PreparationBegan(record.run, "preparing"),
        machine.Prepared(17, "10.10.1.2", "sha256:1"),
        machine.StartBegan(),
        machine.RunStarted(checked=checked),
    )


def step(record: Record, desired: DesiredState, *, now_s: float = NOW_S) -> machine.Step:
    return next_step(record, desired, now_s=now_s)


# ---------------------------------------------------------------------------------------- the way


def test_a_new_task_is_prepared_then_started_then_watched() -> None:
    record = new()
    assert step(record, RUNNING) == machine.Prepare(1)

    record = after(record, machine.PreparationBegan(1, "preparing"))
    record = after(record, machine.Prepared(17, "10.10.1.2", "sha256:1"))
    assert step(record, RUNNING) == machine.Start()

    record = after(record, machine.StartBegan(), machine.RunStarted(checked=False))
    assert step(record, RUNNING) == machine.Watch()
    assert record.status.ready
    assert record.status.pid == 17
    assert record.status.address == "10.10.1.2"


def test_a_task_wanted_ready_rests_when_it_is() -> None:
    record = after(new(), machine.PreparationBegan(1, ""), machine.Prepared(17, "", "sha256:1"))

    assert step(record, READY) == machine.REST


def test_an_agent_without_journal_goes_on_above_the_last_known_run() -> None:
    record = new(last_run=4)

    assert record.run == 5
    assert step(record, RUNNING) == machine.Prepare(5)
    assert record.status.notes[-1].message == "its journal was lost: goes on above run 4"


@pytest.mark.parametrize("before", [new(), running(), after(running(), machine.TaskStopped(None))])
def test_a_journal_that_is_behind_is_lifted_above_all_that_was_told(before: Record) -> None:
    told = v1.TaskStatus(state=v1.TASK_STATE_RUNNING, run=7, seq=99)
    lifted = after(before, machine.JournalBehind(last_run=7, last_seq=99))

    assert report_order(lifted.status) > report_order(told)
    assert lifted.status.notes[-1].message == "its journal was lost: goes on above run 7"
    assert not lifted.status.ready
    if before.state.ended:
        assert lifted.state is before.state
        assert step(lifted, SHUTDOWN) == machine.REST
    else:
        assert step(lifted, RUNNING) == machine.Prepare(8)
        assert step(lifted, SHUTDOWN) == machine.Stop()


def test_a_task_that_shall_not_run_gets_no_run() -> None:
    record = new(last_run=4, desired=SHUTDOWN)
    assert step(record, SHUTDOWN) == machine.Stop()

    record = after(record, machine.TaskStopped(None))
    assert (record.run, record.state) == (4, TaskState.SHUTDOWN)


# ---------------------------------------------------------------------------------- the next run


def test_after_an_exit_the_next_run_follows_in_the_same_task() -> None:
    record = running()
    record = after(record, ended(record, Ended(exit_code=1)), now_s=NOW_S + 1)

    assert record.state is TaskState.WAITING
    assert record.status.message == "exit code 1; run 2 follows at once"
    assert record.status.last_run.exit_code == 1
    assert not record.status.ready
    assert step(record, RUNNING, now_s=NOW_S + 1) == machine.Prepare(2)


def test_a_task_waits_longer_with_each_failure_and_says_until_when() -> None:
    record = running()
    record = after(record, ended(record, Ended(exit_code=1)))
    record = after(
        record,
        machine.PreparationBegan(2, ""),
        machine.Prepared(18, "", ""),
        machine.StartBegan(),
        machine.RunStarted(checked=False),
    )
    record = after(record, ended(record, Ended(exit_code=1)))

    assert seconds(record.status.waiting_until) == pytest.approx(NOW_S + 0.1)
    assert step(record, RUNNING) == machine.Wait(seconds(record.status.waiting_until))
    assert step(record, RUNNING, now_s=NOW_S + 0.2) == machine.Prepare(3)
    assert record.status.message == "exit code 1; run 3 follows in 0.1 s"


def test_a_lasting_run_starts_the_count_again() -> None:
    record = Record(running().status, failures=9)
    lasting = Ended(exit_code=1, ended_at=NOW_S + 11)

    assert after(record, ended(record, lasting)).failures == 1


def test_what_keeps_a_run_from_starting_is_said() -> None:
    record = after(new(), machine.PreparationBegan(1, "preparing"))
    result = results.never_started(1, "command not found: foo", now_s=NOW_S)
    record = after(record, machine.RunEnded(result, POLICY))

    assert record.state is TaskState.WAITING
    assert record.status.message == "command not found: foo; run 2 follows in 0.1 s"
    assert record.status.last_run.message == "command not found: foo"
    assert not record.status.last_run.exit_known


# ---------------------------------------------------------------------------------------- health


def test_a_checked_task_is_ready_only_when_healthy() -> None:
    record = running(checked=True)
    assert (record.status.health, record.status.ready) == (v1.HEALTH_STARTING, False)

    record = after(record, machine.HealthJudged(v1.HEALTH_HEALTHY, ""))
    assert record.status.ready


def test_an_unhealthy_run_is_ended_and_its_result_says_why() -> None:
    why = "unhealthy: 3 checks in a row failed, the last: exit code 1"
    record = after(running(checked=True), machine.HealthJudged(v1.HEALTH_UNHEALTHY, why))
    assert step(record, RUNNING) == machine.EndRun()
    assert not record.status.ready

    record = after(record, machine.StopBegan(why))
    record = after(record, ended(record, Ended(exit_code=None, signal=15)))
    assert record.status.last_run.message == why
    assert record.status.last_run.exit_code == 143
    assert record.state is TaskState.WAITING
    assert record.status.health == v1.HEALTH_UNSPECIFIED


# ------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize("desired", [SHUTDOWN, REMOVE])
def test_a_running_task_is_stopped_before_anything_else(desired: DesiredState) -> None:
    assert step(running(), desired) == machine.Stop()


def test_a_stopped_task_rests_and_is_erased_only_when_it_shall_be_removed() -> None:
    record = running()
    result = ended(record, Ended(exit_code=None, signal=15)).result
    record = after(record, machine.TaskStopped(result))

    assert record.status.message == "stopped: killed by SIGTERM"
    assert step(record, SHUTDOWN) == machine.REST
    assert step(record, REMOVE) == machine.Erase()
    assert step(after(record, machine.TaskErased()), REMOVE) == machine.REST


def test_a_refused_task_never_runs_and_can_be_removed() -> None:
    record = after(new(), machine.TaskRefused("memory limit 1 byte is too small"))

    assert record.state is TaskState.REJECTED
    assert step(record, RUNNING) == machine.REST
    assert step(record, SHUTDOWN) == machine.REST
    assert step(record, REMOVE) == machine.Erase()


# --------------------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("how", "said", "code"),
    [
        (Ended(exit_code=0), "exit code 0", 0),
        (Ended(exit_code=None, signal=9), "killed by SIGKILL", 137),
        (Ended(exit_code=None, signal=9, oom_killed=True), "out of memory: limit 64MiB", 137),
        (Ended(exit_code=None, signal=40), "killed by signal 40", 168),
        (
            Ended(exit_code=3, oom_killed=True),
            "exit code 3, after running out of memory: limit 64MiB",
            3,
        ),
    ],
)
def test_a_result_says_in_one_sentence_how_a_run_ended(how: Ended, said: str, code: int) -> None:
    result = results.of_exit(1, how, memory_limit_bytes=64 << 20)

    assert (result.message, result.exit_code, result.exit_known) == (said, code, True)


def test_an_exit_code_that_is_lost_is_unknown_and_never_zero_by_knowledge() -> None:
    result = results.of_exit(1, Ended(exit_code=None), memory_limit_bytes=0)

    assert not result.exit_known
    assert result.message == "exit code unknown: the launcher was lost"


@pytest.mark.parametrize(
    ("name", "number"), [("SIGTERM", 15), ("int", 2), ("9", 9), ("SIGRTMIN+3", 37)]
)
def test_a_signal_is_known_by_name_and_number(name: str, number: int) -> None:
    assert results.signal_number(name) == number


@pytest.mark.parametrize("name", ["SIGFOO", "0", "65", "", "TERM+1x"])
def test_an_unknown_signal_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="there is no signal"):
        results.signal_number(name)


# ------------------------------------------------------------------------------------ properties


def carried_out(record: Record, the_step: machine.Step, how: int) -> Record:
    """Do what a runner does for one step, well or badly."""
    match the_step:
        case machine.Prepare() | machine.Start() if how % 4 == 0:
            run = the_step.run if isinstance(the_step, machine.Prepare) else record.run
            failed = results.never_started(run, f"fault {how % 3}", now_s=NOW_S)
            began = machine.PreparationBegan(run, "preparing")
            begun = after(record, began) if isinstance(the_step, machine.Prepare) else record
            return after(begun, machine.RunEnded(failed, POLICY))
        case machine.Prepare(run):
            record = after(record, machine.PreparationBegan(run, "preparing"))
            return after(record, machine.Prepared(how, "10.10.1.2", "sha256:1"))
        case machine.Start():
            return after(record, machine.StartBegan(), machine.RunStarted(checked=how % 2 == 0))
        case machine.Watch():
            return watched(record, how)
        case machine.EndRun():
            return after(record, machine.StopBegan("why"), ended(record, Ended(exit_code=0)))
    return stopped(record, the_step)


def watched(record: Record, how: int) -> Record:
    if record.status.health == v1.HEALTH_STARTING:
        verdict = v1.HEALTH_HEALTHY if how % 3 else v1.HEALTH_UNHEALTHY
        return after(record, machine.HealthJudged(verdict, "judged"))
    return after(record, ended(record, Ended(exit_code=how % 3)))


def stopped(record: Record, the_step: machine.Step) -> Record:
    match the_step:
        case machine.Stop():
            return after(record, machine.TaskStopped(None))
        case machine.Erase():
            return after(record, machine.TaskErased())
    return record


stories = st.lists(
    st.tuples(st.sampled_from([READY, RUNNING, SHUTDOWN, REMOVE]), st.integers(0, 100)), max_size=40
)


@given(stories)
def test_every_report_is_greater_than_the_one_before(
    story: list[tuple[DesiredState, int]],
) -> None:
    record, desired = new(), READY
    for wish, how in story:
        desired = max(desired, wish)
        the_step = step(record, desired, now_s=NOW_S + 1e6)
        later = carried_out(record, the_step, how)
        if later is not record:
            assert report_order(later.status) > report_order(record.status)
        record = later
        assert len(record.status.notes) <= NOTES_KEPT


@given(stories)
def test_from_anywhere_a_task_to_remove_is_gone_in_two_steps(
    story: list[tuple[DesiredState, int]],
) -> None:
    record, desired = new(), READY
    for wish, how in story:
        desired = max(desired, wish)
        record = carried_out(record, step(record, desired, now_s=NOW_S + 1e6), how)

    for _ in range(2):
        record = carried_out(record, step(record, REMOVE), 1)

    assert record.state is TaskState.REMOVED
    assert step(record, REMOVE) == machine.REST


@given(stories)
def test_only_a_running_task_is_ready(story: list[tuple[DesiredState, int]]) -> None:
    record, desired = new(), READY
    for wish, how in story:
        desired = max(desired, wish)
        record = carried_out(record, step(record, desired, now_s=NOW_S + 1e6), how)
        if record.status.ready:
            assert record.state is TaskState.RUNNING
        if record.state is TaskState.WAITING:
            assert record.status.message
            assert record.status.HasField("waiting_until")


def test_a_record_is_never_changed_in_place() -> None:
    record = running()
    before = record.status.SerializeToString(deterministic=True)

    after(record, machine.StopBegan("why"), ended(record, Ended()))

    assert record.status.SerializeToString(deterministic=True) == before
    assert record.status.started_at == timestamp(NOW_S)
