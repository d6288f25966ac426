"""Sizes, processors and durations as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 2**20),
        ("64m", 64 * 2**20),
        ("1.5g", 3 * 2**29),
        ("2GiB", 2**31),
        ("1kb", 1024),
    ],
)
def test_a_size_is_read_in_powers_of_1024(text: str, size: int) -> None:
    assert units.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1m", "1.5.2g", "1x", "9" * 30])
def test_what_is_no_size_is_refused_with_what_was_written(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        units.parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "nano_cpus"),
    [("2", 2_000_000_000), ("0.5", 500_000_000), ("0.000000001", 1), ("1.25", 1_250_000_000)],
)
def test_processors_are_read_exactly(text: str, nano_cpus: int) -> None:
    assert units.parse_cpus(text) == nano_cpus


@pytest.mark.parametrize("text", ["", "half", "-1", "1e3", ".5", "0.0000000001"])
def test_what_is_no_number_of_processors_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="processors"):
        units.parse_cpus(text)


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("0", 0),
        ("10s", 10_000_000),
        ("1m30s", 90_000_000),
        ("250ms", 250_000),
        ("1.5s", 1_500_000),
        ("2h", 7_200_000_000),
    ],
)
def test_a_duration_is_a_sum_of_parts(text: str, microseconds: int) -> None:
    assert units.parse_duration(text) == microseconds


@pytest.mark.parametrize("text", ["", "10", "s", "1m 30s", "-5s", "5 parsecs", "9" * 30 + "d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.5 KiB"),
        (64 * 2**20, "64 MiB"),
        (int(23.4 * 2**30), "23.4 GiB"),
        (500 * 2**40, "500 TiB"),
    ],
)
def test_a_size_is_shown_with_three_digits(size: int, text: str) -> None:
    assert units.show_bytes(size) == text


@given(st.integers(0, 2**50))
def test_no_shown_size_is_wider_than_eight_characters(size: int) -> None:
    assert len(units.show_bytes(size)) <= 8


@given(st.integers(0, 10**12).map(lambda hundredths: hundredths * 10_000_000))
def test_processors_to_the_hundredth_read_back_as_they_are_shown(nano_cpus: int) -> None:
    shown = units.show_cpus(nano_cpus)
    if nano_cpus < 999_999 * units.BILLION:
        assert units.parse_cpus(shown) == nano_cpus


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_a_span_is_rough(seconds: float, text: str) -> None:
    assert units.show_span(seconds) == text
