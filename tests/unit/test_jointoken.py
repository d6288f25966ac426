"""The text of a join token: what is written is read again, what is damaged is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estiba.kit import jointoken
from estiba.kit.jointoken import JoinToken

tokens = st.builds(
    lambda der, id_, secret: JoinToken(
        jointoken.digest_of(der), jointoken.letters(id_), jointoken.letters(secret)
    ),
    st.binary(),
    st.binary(min_size=jointoken.ID_BYTES, max_size=jointoken.ID_BYTES),
    st.binary(min_size=jointoken.SECRET_BYTES, max_size=jointoken.SECRET_BYTES),
)


@given(tokens, st.sampled_from(["", " ", "\n", "\t "]))
def test_a_token_that_is_written_is_read_again(token: JoinToken, blanks: str) -> None:
    assert jointoken.parse(f"{blanks}{token}{blanks}") == token
    assert jointoken.is_id(token.id)
    assert jointoken.is_secret(token.secret)


@given(tokens, st.data())
def test_a_token_that_lacks_a_character_is_none(token: JoinToken, data: st.DataObject) -> None:
    text = str(token)
    gone = data.draw(st.integers(0, len(text) - 1))

    with pytest.raises(ValueError, match="copy the whole text") as refused:
        jointoken.parse(text[:gone] + text[gone + 1 :])
    assert token.secret[:-1] not in str(refused.value)


@given(st.text() | st.text().map(lambda text: jointoken.BEGIN + text))
def test_any_text_is_a_token_or_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"the token.*: copy the whole text"):
        jointoken.parse(text)


def test_tokens_in_capitals_or_with_strange_letters_are_none() -> None:
    token = JoinToken(jointoken.digest_of(b""), "a" * 8, "b" * 26)
    for text in (str(token).upper(), str(token)[:-1] + "1", str(token)[:-1] + "\u00e4"):
        with pytest.raises(ValueError, match="the token"):
            jointoken.parse(text)


def test_the_secret_is_not_in_what_a_log_would_show() -> None:
    token = JoinToken("d", "i", "secret")

    assert "secret" not in repr(token)
    assert str(token) == "estiba-1-d-i-secret"


def test_a_digest_is_base32_of_sha_256() -> None:
    # printf '' | sha256sum | xxd -r -p | base32
    assert jointoken.digest_of(b"") == "4oymiquy7qobjgx36tejs35zeqt24qpemsnzgtfeswmrw6csxbkq"
