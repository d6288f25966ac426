"""A followed log goes on at another member after one died: no line is lost, none comes twice."""

from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.logs import Seen
from estiba.v1 import control_pb2

# Few moments, so that several lines of a task share one.
WRITTEN = st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(1, 4)), max_size=30)


def line(task: str, stderr: bool, at: int, number: int) -> control_pb2.LogLine:
    made = control_pb2.LogLine(task_id=task, stderr=stderr, line=str(number).encode())
    made.at.FromNanoseconds(at)
    return made


@given(WRITTEN, st.lists(st.integers(0, 30), max_size=4))
def test_a_stream_that_breaks_off_anywhere_is_gone_on_with(
    written: list[tuple[str, bool, int]], breaks: list[int]
) -> None:
    lines = [line(*words, number) for number, words in enumerate(sorted(written, key=_at))]
    seen = Seen()
    shown: list[control_pb2.LogLine] = []
    since = 0
    for end in [*sorted(breaks), len(lines)]:
        sent = [each for each in lines[:end] if each.at.ToNanoseconds() >= since]
        shown += [each for each in sent if seen.is_news(each)]
        since = seen.begin_again() or 0
    assert shown == lines


def _at(words: tuple[str, bool, int]) -> int:
    return words[2]


def test_before_anything_was_shown_everything_is_asked_for_again() -> None:
    assert Seen().begin_again() is None
