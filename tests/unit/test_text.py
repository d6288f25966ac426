"""What strangers say is shown, and obeyed by no terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estiba.kit.text import plain


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("exit code 1: no such file", "exit code 1: no such file"),
        ("señal en español, 信号", "señal en español, 信号"),
        ("\x1b]0;owned\x07\x1b[2Jrunning", "?]0;owned??[2Jrunning"),
        ("one\ntwo\r\tthree", "one two  three"),
        ("half \ud800 of \udc80 a character", "half ? of ? a character"),
        ("turned \u202eround", "turned ?round"),
    ],
)
def test_text_is_on_one_line_and_printable(said: str, shown: str) -> None:
    assert plain(said) == shown


@given(st.text(st.characters()))
def test_any_text_is_printable_encodable_and_short(said: str) -> None:
    shown = plain(said, most=20)
    assert shown.isprintable()
    assert len(shown) <= 23
    shown.encode()
