"""Decide the next step of one task, and what its status is after what happened.

Pure. `next_step` looks only at where the task is and where it should be, so it may be
asked at any time, also by an agent that has just come back. The runner carries the
step out and tells what happened as an event; `advance` turns that into the next
record. By (run, state, seq) every record is greater than the one before.
"""

from dataclasses import dataclass

from agent.tasks.restarts import after_run
from estiba.kit.text import plain
from estiba.model import DesiredState, TaskState
from estiba.v1 import types_pb2 as v1
from estiba.wire import add_note, seconds, timestamp

# ------------------------------------------------------------------------------------------ record


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a task here: journaled whole, reported without ``failures``.

    The status is never changed in place.
    """

    status: v1.TaskStatus
    failures: int = 0
    """Runs in a row that ended too soon."""

    @property
    def state(self) -> TaskState:
        return TaskState(self.status.state)

    @property
    def run(self) -> int:
        return self.status.run


def new_record(*, last_run: int, last_seq: int, desired: DesiredState, now_s: float) -> Record:
    """Begin above what the control plane knows: the journal may have been lost.

    A task that shall not run gets no run of its own.
    """
    wanted = desired <= DesiredState.RUNNING
    status = v1.TaskStatus(
        state=v1.TASK_STATE_ACCEPTED if wanted else v1.TASK_STATE_UNSPECIFIED,
        run=last_run + 1 if wanted else last_run,
        seq=last_seq + 1,
        at=timestamp(now_s),
    )
    if wanted and last_run:
        add_note(status, _goes_on_above(last_run), now_s=now_s, revision=0)
    return Record(status)


# ------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get the image and make the container of this run."""

    run: int


@dataclass(frozen=True, slots=True)
class Start:
    """Let the container that is ready run."""


@dataclass(frozen=True, slots=True)
class Watch:
    """It runs: wait for its end, for its health, for another wish."""


@dataclass(frozen=True, slots=True)
class Wait:
    until_s: float
    """Seconds since the epoch; infinity: until something is wanted or happens."""


@dataclass(frozen=True, slots=True)
class EndRun:
    """Stop this run, gracefully; the next may follow."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop what runs, gracefully, and clean up all but logs and journal."""


@dataclass(frozen=True, slots=True)
class Erase:
    """Delete logs and journal: nothing may be left."""


Step = Prepare | Start | Watch | Wait | EndRun | Stop | Erase

REST = Wait(float("inf"))


def next_step(record: Record, desired: DesiredState, *, now_s: float) -> Step:
    """Decide what to do now."""
    state = record.state
    if state is TaskState.REMOVED:
        return REST
    if desired >= DesiredState.SHUTDOWN:
        if not state.ended:
            return Stop()
        return Erase() if desired is DesiredState.REMOVE else REST
    if state is TaskState.WAITING:
        until_s = seconds(record.status.waiting_until)
        return Prepare(record.run + 1) if now_s >= until_s else Wait(until_s)
    if state in {TaskState.NEW, TaskState.ACCEPTED, TaskState.PREPARING}:
        return Prepare(max(record.run, 1))
    if state is TaskState.READY:
        return Start() if desired is DesiredState.RUNNING else REST
    if state is TaskState.STARTING:
        return Start()
    if state is TaskState.RUNNING:
        return EndRun() if record.status.health == v1.HEALTH_UNHEALTHY else Watch()
    return REST


# ------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class PreparationBegan:
    run: int
    message: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """Still in the same state, with more to say."""

    message: str


@dataclass(frozen=True, slots=True)
class Prepared:
    pid: int
    address: str
    image_digest: str


@dataclass(frozen=True, slots=True)
class StartBegan:
    pass


@dataclass(frozen=True, slots=True)
class RunStarted:
    checked: bool
    """There is a health check, so running alone does not make it ready."""


@dataclass(frozen=True, slots=True)
class HealthJudged:
    health: "v1.Health.ValueType"
    message: str


@dataclass(frozen=True, slots=True)
class StopBegan:
    reason: str
    revision: int = 0


@dataclass(frozen=True, slots=True)
class RunEnded:
    result: v1.RunResult
    policy: v1.RestartPolicy


@dataclass(frozen=True, slots=True)
class JournalBehind:
    """The control plane knows of later runs: the machine stopped before their records were on
    disk. What is told of earlier ones would count for nothing.
    """

    last_run: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class TaskStopped:
    result: v1.RunResult | None
    """None: no run was under way."""


@dataclass(frozen=True, slots=True)
class TaskRefused:
    message: str


@dataclass(frozen=True, slots=True)
class TaskErased:
    pass


Event = (
    PreparationBegan
    | Progressed
    | Prepared
    | StartBegan
    | RunStarted
    | HealthJudged
    | StopBegan
    | RunEnded
    | JournalBehind
    | TaskStopped
    | TaskRefused
    | TaskErased
)


def advance(record: Record, event: Event, *, now_s: float) -> Record:
    """Return the record after an event."""
    status = v1.TaskStatus()
    status.CopyFrom(record.status)
    status.seq += 1
    status.at.CopyFrom(timestamp(now_s))
    failures = record.failures
    if isinstance(event, RunEnded):
        failures = _end_run(status, event, record, now_s)
    elif isinstance(event, JournalBehind):
        _catch_up(status, event, now_s)
    elif isinstance(event, TaskStopped | TaskRefused | TaskErased):
        _end_task(status, event, now_s)
    else:
        _go_on(status, event, now_s)
    return Record(status, failures)


_OnTheWay = (
    PreparationBegan | Progressed | Prepared | StartBegan | RunStarted | HealthJudged | StopBegan
)


def _go_on(status: v1.TaskStatus, event: _OnTheWay, now_s: float) -> None:
    match event:
        case PreparationBegan(run, message):
            status.state, status.run, status.message = v1.TASK_STATE_PREPARING, run, message
            _clear_run(status)
        case Progressed(message):
            status.message = plain(message)
        case Prepared(pid, address, digest):
            status.state, status.message = v1.TASK_STATE_READY, ""
            status.pid, status.address, status.image_digest = pid, address, digest
        case StartBegan():
            status.state, status.message = v1.TASK_STATE_STARTING, ""
        case RunStarted(checked):
            status.state = v1.TASK_STATE_RUNNING
            status.message = "waiting for its first successful health check" if checked else ""
            status.started_at.CopyFrom(timestamp(now_s))
            status.health = v1.HEALTH_STARTING if checked else v1.HEALTH_UNSPECIFIED
            status.ready = not checked
        case HealthJudged(health, said):
            # The container said it.
            message = plain(said)
            status.health, status.message = health, message
            status.ready = health == v1.HEALTH_HEALTHY
            if health == v1.HEALTH_UNHEALTHY:
                add_note(status, message, now_s=now_s, revision=0)
        case StopBegan(reason, revision):
            status.ready, status.message = False, reason
            add_note(status, reason, now_s=now_s, revision=revision)


def _end_run(status: v1.TaskStatus, event: RunEnded, record: Record, now_s: float) -> int:
    """Go to waiting; return the failures in a row."""
    result = v1.RunResult()
    result.CopyFrom(event.result)
    if record.status.health == v1.HEALTH_UNHEALTHY:
        # We ended it ourselves; the signal that did it is not the reason.
        result.message = record.status.message
    ran_s = None
    if record.state is TaskState.RUNNING:
        ran_s = max(seconds(result.ended_at) - seconds(record.status.started_at), 0.0)
    restart = after_run(event.policy, failures=record.failures, ran_s=ran_s)
    follows = f"in {restart.delay_s:.3g} s" if restart.delay_s else "at once"
    status.state = v1.TASK_STATE_WAITING
    status.message = f"{result.message}; run {record.run + 1} follows {follows}"
    _clear_run(status)
    status.waiting_until.CopyFrom(timestamp(now_s + restart.delay_s))
    status.last_run.CopyFrom(result)
    add_note(status, result.message, now_s=now_s, revision=0)
    return restart.failures


def _catch_up(status: v1.TaskStatus, event: JournalBehind, now_s: float) -> None:
    """Go on above the last run that is known of; a task that has ended stays so."""
    status.run = event.last_run
    status.seq = max(status.seq, event.last_seq + 1)
    _clear_run(status)
    reason = _goes_on_above(event.last_run)
    add_note(status, reason, now_s=now_s, revision=0)
    if not TaskState(status.state).ended:
        status.state, status.message = v1.TASK_STATE_WAITING, reason
        status.waiting_until.CopyFrom(timestamp(now_s))


def _goes_on_above(last_run: int) -> str:
    return f"its journal was lost: goes on above run {last_run}"


def _end_task(
    status: v1.TaskStatus, event: TaskStopped | TaskRefused | TaskErased, now_s: float
) -> None:
    _clear_run(status)
    match event:
        case TaskStopped(result):
            status.state = v1.TASK_STATE_SHUTDOWN
            status.message = f"stopped: {result.message}" if result is not None else "stopped"
            if result is not None:
                status.last_run.CopyFrom(result)
        case TaskRefused(message):
            status.state, status.message = v1.TASK_STATE_REJECTED, message
            add_note(status, message, now_s=now_s, revision=0)
        case TaskErased():
            status.state, status.message = v1.TASK_STATE_REMOVED, "nothing of it is left"


def _clear_run(status: v1.TaskStatus) -> None:
    """Take out what is true of one running container only."""
    status.ready = False
    status.health = v1.HEALTH_UNSPECIFIED
    status.pid = 0
    status.address = ""
    status.ClearField("waiting_until")
    status.ClearField("started_at")
