"""Output turned into log entries: nothing lost, nothing added, whatever the pieces."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.runtime.logfile import MAX_LINE_BYTES, Rest, format_lines, timestamp

NOW_NS = 1_795_521_395_123_456_789
HEAD = b"2026-11-24T11:56:35.123456789Z stdout "
ENTRY = re.compile(rb"[^\n]{30} stdout ([FP]) ([^\n]*)\n")


def entries(
    data: bytes, rest: Rest = Rest.KEEP, room_bytes: int = 1 << 30
) -> tuple[list[tuple[bytes, bytes]], int]:
    text, used = format_lines(
        data, stream="stdout", now_ns=NOW_NS, rest=rest, room_bytes=room_bytes
    )
    found = ENTRY.findall(text)
    assert b"".join(HEAD + tag + b" " + line + b"\n" for tag, line in found) == text
    return found, used


def test_times_are_utc_with_nanoseconds() -> None:
    assert timestamp(NOW_NS).encode() == HEAD.split()[0]
    assert timestamp(1) == "1970-01-01T00:00:00.000000001Z"


def test_lines_are_full_and_what_follows_the_last_newline_waits() -> None:
    assert entries(b"one\n\ntwo\nthr") == ([(b"F", b"one"), (b"F", b""), (b"F", b"two")], 9)
    assert entries(b"thr") == ([], 0)
    assert entries(b"") == ([], 0)


def test_at_the_end_the_rest_is_a_line() -> None:
    assert entries(b"one\ntwo", Rest.FULL) == ([(b"F", b"one"), (b"F", b"two")], 7)
    assert entries(b"", Rest.FULL) == ([], 0)


def test_a_rest_that_cannot_wait_is_a_part() -> None:
    assert entries(b"one\ntwo", Rest.PART) == ([(b"F", b"one"), (b"P", b"two")], 7)


def test_a_long_line_is_split_and_ends_full() -> None:
    long = b"x" * (2 * MAX_LINE_BYTES + 5)
    parts = [(b"P", b"x" * MAX_LINE_BYTES)] * 2
    assert entries(long + b"\n") == ([*parts, (b"F", b"xxxxx")], len(long) + 1)
    assert entries(long) == (parts, 2 * MAX_LINE_BYTES)
    assert entries(b"x" * MAX_LINE_BYTES + b"\n")[0] == [(b"F", b"x" * MAX_LINE_BYTES)]


def test_no_more_is_turned_than_has_room_but_for_one_entry() -> None:
    one = len(HEAD) + len("F one\n")
    data = b"one\ntwo\nxyz\nend"
    assert entries(data, Rest.FULL, one - 1) == ([(b"F", b"one")], 4)
    assert entries(data, Rest.FULL, 2 * one) == ([(b"F", b"one"), (b"F", b"two")], 8)
    assert entries(data, Rest.FULL, 4 * one)[1] == len(data)


pieces = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=20),
        st.just(b"\n"),
        st.integers(1, 3 * MAX_LINE_BYTES).map(lambda size: b"y" * size),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(pieces, st.sampled_from([Rest.KEEP, Rest.PART]), st.integers(0, 2 * MAX_LINE_BYTES))
def test_whatever_the_pieces_the_entries_say_what_was_printed(
    pieces: list[bytes], rest: Rest, room_bytes: int
) -> None:
    kept = b""
    written: list[tuple[bytes, bytes]] = []
    for piece in [*pieces, None]:
        kept += piece or b""
        while True:
            found, used = entries(kept, Rest.FULL if piece is None else rest, room_bytes)
            written += found
            kept = kept[used:]
            if not used:
                break
    assert kept == b""
    printed = b"".join(pieces)
    text = b"".join(line + (b"\n" if tag == b"F" else b"") for tag, line in written)
    assert text in {printed, printed + b"\n"}
    assert all(len(line) <= MAX_LINE_BYTES for _, line in written)
