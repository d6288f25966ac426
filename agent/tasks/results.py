"""Say how a run ended, as a result for code and a sentence for people. Pure."""

import signal as signals

from agent.tasks.ports import Exit
from estiba.kit.text import plain
from estiba.v1 import types_pb2 as v1
from estiba.wire import timestamp

LAUNCHER_LOST = "exit code unknown: the launcher was lost"
UNSEEN = "exit code unknown: the end was not seen"
INTERRUPTED = "the agent was interrupted before the container ran"


def of_exit(run: int, ended: Exit, *, memory_limit_bytes: int) -> v1.RunResult:
    """Describe an exit. A code of 128 + N says that signal N ended it."""
    known = ended.exit_code is not None or ended.signal is not None
    code = 128 + ended.signal if ended.signal else ended.exit_code or 0
    return v1.RunResult(
        run=run,
        exit_code=code,
        exit_known=known,
        oom_killed=ended.oom_killed,
        started_at=timestamp(ended.started_at),
        ended_at=timestamp(ended.ended_at),
        message=_sentence(ended, memory_limit_bytes),
    )


def unknown(run: int, reason: str, *, started_at_s: float, now_s: float) -> v1.RunResult:
    """Describe the end of a run that nobody saw."""
    return v1.RunResult(
        run=run, message=reason, started_at=timestamp(started_at_s), ended_at=timestamp(now_s)
    )


def never_started(run: int, reason: str, *, now_s: float) -> v1.RunResult:
    # It may quote the image: names of its files, its command, what its registry answers.
    return v1.RunResult(run=run, message=plain(reason), ended_at=timestamp(now_s))


def bytes_for_people(size: int) -> str:
    """Write a size as Docker's flags take it, such as 64MiB."""
    for unit, length in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << length:
            return f"{size / (1 << length):.10g}{unit}"
    return f"{size}B"


def _sentence(ended: Exit, memory_limit_bytes: int) -> str:
    limit = f": limit {bytes_for_people(memory_limit_bytes)}" if memory_limit_bytes else ""
    if ended.signal:
        name = _signal_name(ended.signal)
        if ended.oom_killed and ended.signal == signals.SIGKILL:
            return f"out of memory{limit}"
        return f"killed by {name}"
    if ended.exit_code is None:
        return LAUNCHER_LOST
    if ended.oom_killed:
        # A process below the first one was killed, and the first one ended by itself.
        return f"exit code {ended.exit_code}, after running out of memory{limit}"
    return f"exit code {ended.exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def signal_number(name: str) -> int:
    """Read a signal: SIGTERM, TERM, 15, SIGRTMIN+3.

    Raises:
        ValueError: there is no such signal; the message is a sentence.
    """
    wanted = name.upper().removeprefix("SIG")
    if wanted.isdecimal():
        number = int(wanted)
    else:
        base, plus, offset = wanted.partition("+")
        known = {each.name.removeprefix("SIG"): int(each) for each in signals.Signals}
        number = known.get(base, 0)
        if plus:
            number = number + int(offset) if number and offset.isdecimal() else 0
    if number not in range(1, 65):
        raise ValueError(f"stop_signal: there is no signal {name}")
    return number
