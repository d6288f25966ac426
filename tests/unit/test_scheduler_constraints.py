"""What a placement constraint means, and how one is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.scheduler import Constraint, first_unmet, parse_constraint, satisfies
from controlplane.scheduler.constraints import readable
from estiba.model import Node, NodeId

SSD = Node(NodeId("id-1"), "n1", labels={"disk": "ssd", "site/rack": "a 1"})

names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,10}[A-Za-z0-9])?", fullmatch=True)
values = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1).filter(
    lambda value: value.isprintable() and value == value.strip()
)
constraints = st.builds(
    Constraint,
    key=st.sampled_from(["node.id", "node.hostname"]) | names.map("node.labels.{}".format),
    value=values,
    equal=st.booleans(),
)


@given(constraints)
def test_a_constraint_that_is_written_and_read_is_the_same(constraint: Constraint) -> None:
    assert parse_constraint(str(constraint)) == constraint
    assert parse_constraint(f"  {str(constraint).replace(' ', '', 1)} ") == constraint


@given(st.text(max_size=40))
def test_any_text_is_a_constraint_or_an_error_that_quotes_it(text: str) -> None:
    if readable((text,)):
        parse_constraint(text)
        return
    with pytest.raises(ValueError, match=r"node\.labels\.NAME") as refused:
        parse_constraint(text)
    assert repr(text) in str(refused.value)
    assert not satisfies(SSD, [text])


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("node.labels.disk == ssd", True),
        ("node.labels.disk==ssd", True),
        ("node.labels.disk == SSD", False),
        ("node.labels.disk != ssd", False),
        ("node.labels.disk != hdd", True),
        ("node.labels.gpu == yes", False),
        ("node.labels.gpu != yes", True),
        ("node.labels.site/rack == a 1", True),
        ("node.hostname == n1", True),
        ("node.hostname != n1", False),
        ("node.id == id-1", True),
        ("node.id == n1", False),
    ],
)
def test_a_node_passes_a_constraint_by_its_exact_value(text: str, passes: bool) -> None:
    assert satisfies(SSD, [text]) is passes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "node.labels.disk",
        "node.labels.disk = ssd",
        "node.labels.disk ==",
        "== ssd",
        "node.labels. == ssd",
        "node.color == red",
        "disk == ssd",
        "node.labels.disk ~ ssd",
        "node.labels.disk == a\nb",
    ],
)
def test_what_is_no_constraint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write KEY == VALUE or KEY != VALUE"):
        parse_constraint(text)


def test_the_first_constraint_that_fails_is_named_as_it_was_written() -> None:
    asked = ["node.hostname == n1", "node.labels.disk==hdd", "node.id == x"]

    assert first_unmet(SSD, asked) == "node.labels.disk==hdd"


def test_a_constraint_of_a_later_version_places_nothing() -> None:
    asked = ("node.labels.disk == ssd", "node.zone in a,b")

    assert first_unmet(SSD, asked) == "node.zone in a,b"
    assert readable(asked) == ("node.labels.disk == ssd",)
