"""Decide when the next run of a task begins. Pure.

The first restart comes at once, then after 0.1 s doubling to 60 s (or as the policy
says). A run of ten seconds starts the count again. A run that never started waits
from the first time: what it lacks, an image or a command, seldom comes at once.
"""

from dataclasses import dataclass

from estiba.v1 import types_pb2 as v1
from estiba.wire import duration_s

FIRST_DELAY_S = 0.1
MOST_DELAY_S = 60.0
LASTING_RUN_S = 10.0


@dataclass(frozen=True, slots=True)
class Restart:
    failures: int
    """Runs in a row that ended too soon, this one included."""
    delay_s: float


def after_run(policy: v1.RestartPolicy, *, failures: int, ran_s: float | None) -> Restart:
    """Decide after a run of ``ran_s`` seconds, None if it never started.

    ``failures`` is what the decision after the run before returned, 0 for the first.
    """
    first_s = duration_s(policy.initial_delay) or FIRST_DELAY_S
    most_s = duration_s(policy.max_delay) or MOST_DELAY_S
    if ran_s is not None and ran_s >= LASTING_RUN_S:
        failures = 0
    failures += 1
    if failures == 1 and ran_s is not None:
        return Restart(failures, 0.0)
    exponent = min(max(failures - 2, 0), 30)
    return Restart(failures, min(first_s * float(2**exponent), most_s))
