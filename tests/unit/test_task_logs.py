"""Reading the log pump's files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.tasks.folders import forget_old_runs
from agent.tasks.logs import TaskLog, parse_line
from estiba.wire import seconds


def line(text: str, second: int = 0, *, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"2026-11-24T10:00:{second:02}.123456789Z {stream} {tag} {text}\n".encode()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TaskLog]:
    with TaskLog(tmp_path) as opened:
        yield opened


def rest(log: TaskLog) -> list[str]:
    found = []
    while lines := log.more():
        found += [each.line.decode() for each in lines]
    return found


def test_a_line_is_read_with_its_time_stream_and_tag() -> None:
    read = parse_line(line("hello  world ", 7, stream="stderr", tag="P").rstrip(b"\n"), 3)

    assert read is not None
    assert (read.line, read.run, read.stderr, read.partial) == (b"hello  world ", 3, True, True)
    assert (read.at.seconds, read.at.nanos) == (1795514407, 123456789)


@pytest.mark.parametrize(
    "text", [b"", b"2026-11-24T10:0", b"no line at all F x", b"\xff \xff \xff "]
)
def test_what_is_no_line_is_left_out(text: bytes) -> None:
    assert parse_line(text, 1) is None


def test_an_empty_line_is_a_line() -> None:
    read = parse_line(line("").rstrip(b"\n"), 1)
    assert read is not None
    assert read.line == b""


def test_runs_are_read_in_the_order_of_their_numbers(tmp_path: Path, log: TaskLog) -> None:
    for run in (10, 9, 1):
        (tmp_path / f"{run}.log").write_bytes(line(f"run {run}"))

    assert rest(log) == ["run 1", "run 9", "run 10"]


def test_lines_since_a_time_begin_with_it(tmp_path: Path) -> None:
    (tmp_path / "1.log").write_bytes(line("early", 1) + line("late", 5))
    at = parse_line(line("", 5).rstrip(b"\n"), 1)
    assert at is not None

    with TaskLog(tmp_path, since_s=seconds(at.at)) as log:
        assert rest(log) == ["late"]


def test_a_half_written_line_comes_when_it_is_whole(tmp_path: Path, log: TaskLog) -> None:
    whole = line("all of it")
    (tmp_path / "1.log").write_bytes(whole[:30])
    assert log.more() == []

    with (tmp_path / "1.log").open("ab") as file:
        file.write(whole[30:])
    assert rest(log) == ["all of it"]


def test_a_reader_goes_on_where_it_was_after_several_rotations(
    tmp_path: Path, log: TaskLog
) -> None:
    (tmp_path / "1.log").write_bytes(line("one"))
    assert rest(log) == ["one"]

    (tmp_path / "1.log").rename(tmp_path / "1.log.2")
    with (tmp_path / "1.log.2").open("ab") as file:
        file.write(line("two"))
    (tmp_path / "1.log.1").write_bytes(line("three"))
    (tmp_path / "1.log").write_bytes(line("four"))

    assert rest(log) == ["two", "three", "four"]


def test_a_reader_whose_file_was_deleted_reads_it_to_its_end_and_goes_on(
    tmp_path: Path, log: TaskLog
) -> None:
    (tmp_path / "1.log").write_bytes(line("one"))
    assert rest(log) == ["one"]

    with (tmp_path / "1.log").open("ab") as file:
        file.write(line("two"))
    (tmp_path / "1.log").unlink()
    (tmp_path / "1.log.1").write_bytes(line("three"))

    assert rest(log) == ["two", "three"]


@given(
    st.lists(st.lists(st.integers(0, 3000), max_size=60), min_size=1, max_size=4),
    st.integers(1, 100),
)
@settings(max_examples=60, deadline=None)
def test_the_tail_is_the_last_lines_of_all(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], tail: int
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    everything = []
    for run, lengths in enumerate(files, start=1):
        texts = [f"{run}.{number}" + "x" * length for number, length in enumerate(lengths)]
        (folder / f"{run}.log").write_bytes(b"".join(line(text) for text in texts))
        everything += texts
    with TaskLog(folder) as log:
        log.skip_to_tail(tail)
        assert rest(log) == everything[-tail:]


def test_the_logs_of_the_last_five_runs_that_wrote_any_are_kept(tmp_path: Path) -> None:
    for name in ("1.log", "1.log.1", "3.log", "4.log", "8.log", "9.log", "9.log.1", "10.log"):
        (tmp_path / name).touch()

    forget_old_runs(tmp_path)

    kept = {"3.log", "4.log", "8.log", "9.log", "9.log.1", "10.log"}
    assert {each.name for each in tmp_path.iterdir()} == kept
