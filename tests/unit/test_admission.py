"""Who is admitted: the rules, said for all tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.authority import admission
from controlplane.authority.admission import Outcome
from estiba import wire
from estiba.v1 import types_pb2 as v1

NOW_S = 1_800_000_000.0
SECRET = "a" * 26


def token(*, uses: int = 2, admitted: tuple[str, ...] = (), lasts_s: float = 1.0) -> v1.JoinToken:
    return v1.JoinToken(
        expires_at=wire.timestamp(NOW_S + lasts_s),
        uses=uses,
        admitted=admitted,
        secret_sha256=admission.secret_digest(SECRET),
    )


def refused(
    found: v1.JoinToken, *, secret: str = SECRET, node_id: str = "n", removed: bool = False
) -> admission.Refusal:
    refusal = admission.judge(found, secret, node_id, removed=removed, now_s=NOW_S)
    assert refusal is not None
    return refusal


def test_a_token_admits_a_node_and_counts_it() -> None:
    before = token()
    assert admission.judge(before, SECRET, "n", removed=False, now_s=NOW_S) is None

    after = admission.admit(before, "n")
    assert list(after.admitted) == ["n"]
    assert not before.admitted


def test_no_token_and_a_wrong_secret_read_the_same() -> None:
    assert refused(v1.JoinToken()) == refused(token(), secret="b" * 26)
    assert refused(v1.JoinToken()).outcome is Outcome.UNKNOWN


def test_without_the_secret_nothing_of_a_token_is_told() -> None:
    spent = token(uses=1, admitted=("m",), lasts_s=-1)
    assert refused(spent, secret="b" * 26) == refused(v1.JoinToken())
    assert refused(v1.JoinToken(), removed=True) == refused(v1.JoinToken())


def test_a_token_that_has_expired_says_when() -> None:
    refusal = refused(token(lasts_s=0))
    assert refusal.outcome is Outcome.EXPIRED
    assert refusal.sentence.startswith("the token expired on 2027-01-15 08:00:00 UTC: make another")


@pytest.mark.parametrize(("uses", "nodes"), [(1, "1 node"), (2, "2 nodes")])
def test_a_token_that_is_used_up_says_by_how_many(uses: int, nodes: str) -> None:
    refusal = refused(token(uses=uses, admitted=("a", "b")[:uses]))
    assert refusal.outcome is Outcome.USED_UP
    assert f"has admitted the {nodes}" in refusal.sentence


def test_a_removed_node_is_told_to_leave_first() -> None:
    refusal = refused(token(), node_id="n", removed=True)
    assert refusal.outcome is Outcome.REMOVED_NODE
    assert "node n was removed" in refusal.sentence
    assert "estiba node leave" in refusal.sentence


@given(st.integers(1, 5), st.lists(st.sampled_from("abcdefg"), max_size=30))
def test_a_token_admits_as_many_nodes_as_it_says_however_often_they_ask(
    uses: int, asking: list[str]
) -> None:
    now = token(uses=uses)
    admitted = set()
    for node_id in asking:
        if admission.judge(now, SECRET, node_id, removed=False, now_s=NOW_S) is None:
            now = admission.admit(now, node_id)
            admitted.add(node_id)

    assert list(now.admitted) == list(dict.fromkeys(asking))[:uses]
    assert admitted == set(now.admitted)


def test_the_secret_is_not_in_what_is_stored() -> None:
    assert SECRET.encode() not in token().SerializeToString()
