"""Answers of etcd's watch, cut anywhere and sent again, come out whole and once."""

from hypothesis import given
from hypothesis import strategies as st

from controlplane.store.fragments import Assembly
from controlplane.store.protocol import Batch, Event


def event(revision: int, key: str = "/a") -> Event:
    return Event(key, None, revision)


def test_parts_come_out_together_with_the_last() -> None:
    assembly = Assembly(after=4)

    assert assembly.add([event(5, "/a")], more=True) is None
    assert assembly.delivered == 4
    batch = assembly.add([event(5, "/b"), event(6)], more=False)

    assert batch == Batch(6, (event(5, "/a"), event(5, "/b"), event(6)))
    assert assembly.delivered == 6


def test_parts_without_their_last_are_forgotten() -> None:
    assembly = Assembly(after=4)
    assembly.add([event(5, "/a")], more=True)
    assembly.restart()

    assert assembly.add([event(5, "/a"), event(5, "/b")], more=False) == Batch(
        5, (event(5, "/a"), event(5, "/b"))
    )


def test_what_was_delivered_is_dropped_when_it_is_sent_again() -> None:
    assembly = Assembly(after=4)

    assert assembly.add([event(4)], more=False) is None
    assert assembly.add([event(4), event(5)], more=False) == Batch(5, (event(5),))


def test_a_bookmark_moves_on_but_never_back_nor_past_open_parts() -> None:
    assembly = Assembly(after=4)

    assert assembly.bookmark(9) == Batch(9, ())
    assert assembly.bookmark(9) is None
    assert assembly.bookmark(8) is None
    assembly.add([event(10)], more=True)
    assert assembly.bookmark(12) is None
    assert assembly.delivered == 9


# How many events each revision has; then where each stream is cut, and into which parts.
histories = st.lists(st.integers(1, 4), min_size=1, max_size=12)
streams = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(1, 9), max_size=8)), max_size=6
)


@given(histories, streams, st.integers(1, 5))
def test_however_it_is_cut_each_event_comes_once_and_revisions_stay_whole(
    history: list[int], cuts: list[tuple[int, list[int]]], answer_revisions: int
) -> None:
    events = [
        event(revision, f"/{number}")
        for revision, count in enumerate(history, start=1)
        for number in range(count)
    ]
    assembly = Assembly(after=0)
    batches: list[Batch] = []
    for parts_in, sizes in [*cuts, (10_000, [])]:
        assembly.restart()
        left = parts_in
        for answer in _answers(events, max(1, assembly.delivered), answer_revisions):
            for part, more in _parts(answer, sizes):
                if left == 0:
                    break
                left -= 1
                batch = assembly.add(part, more=more)
                batches += [batch] if batch else []

    assert [one for batch in batches for one in batch.events] == events
    assert [batch.revision for batch in batches] == sorted({b.revision for b in batches})
    for batch in batches:
        assert batch.events[-1].revision == batch.revision
        assert [e for e in events if e.revision == batch.revision] == [
            e for e in batch.events if e.revision == batch.revision
        ]


def _answers(events: list[Event], start: int, revisions: int) -> list[list[Event]]:
    """Whole revisions, so many to an answer, from ``start`` on."""
    last = events[-1].revision
    return [
        [one for one in events if first <= one.revision < first + revisions]
        for first in range(start, last + 1, revisions)
    ]


def _parts(answer: list[Event], sizes: list[int]) -> list[tuple[list[Event], bool]]:
    parts, first = [], 0
    for size in sizes:
        if first + size < len(answer):
            parts.append((answer[first : first + size], True))
            first += size
    return [*parts, (answer[first:], False)]
