"""What a placement constraint means: `node.labels.disk == ssd`. Pure.

A node without the label fails `==` and passes `!=`. Values compare exactly.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from estiba.model import Node

LABEL_PREFIX = "node.labels."

_FORM = re.compile(r"(?P<key>[A-Za-z0-9._/-]+)\s*(?P<operator>==|!=)\s*(?P<value>\S(?:.*\S)?)")
_LABEL_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")
_HELP = (
    "write KEY == VALUE or KEY != VALUE, where KEY is node.id, node.hostname or node.labels.NAME"
)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A must: a node that fails it is out."""

    key: str
    """``node.id``, ``node.hostname`` or ``node.labels.NAME``."""
    value: str
    equal: bool = True

    def __str__(self) -> str:
        return f"{self.key} {'==' if self.equal else '!='} {self.value}"

    def matches(self, node: Node) -> bool:
        return (_attribute(node, self.key) == self.value) is self.equal


@lru_cache(maxsize=4096)
def parse_constraint(text: str) -> Constraint:
    """Read a constraint as users write it.

    Raises:
        ValueError: it is none; the message is a sentence that says how to write one.
    """
    form = _FORM.fullmatch(text.strip())
    if form is None or not text.strip().isprintable():
        raise ValueError(f"{text!r} is no constraint: {_HELP}")
    key = form["key"]
    label = key.removeprefix(LABEL_PREFIX)
    known = key in ("node.id", "node.hostname")
    if not known and (label == key or not _LABEL_KEY.fullmatch(label)):
        raise ValueError(f"{text!r} constrains {key!r}, which nodes do not have: {_HELP}")
    return Constraint(key, form["value"], form["operator"] == "==")


def satisfies(node: Node, constraints: Iterable[str]) -> bool:
    """Tell whether the node passes every constraint."""
    return first_unmet(node, constraints) is None


def first_unmet(node: Node, constraints: Iterable[str]) -> str | None:
    """Return the first constraint, as it was written, that the node fails.

    One that cannot be read fails on every node: it may be a newer member's, and to
    place a task against it could not be undone.
    """
    for text in constraints:
        try:
            constraint = parse_constraint(text)
        except ValueError:
            return text
        if not constraint.matches(node):
            return text
    return None


@lru_cache(maxsize=4096)
def readable(constraints: tuple[str, ...]) -> tuple[str, ...]:
    """Return those that this version understands."""
    return tuple(text for text in constraints if _is_readable(text))


def _is_readable(text: str) -> bool:
    try:
        parse_constraint(text)
    except ValueError:
        return False
    return True


def _attribute(node: Node, key: str) -> str | None:
    if key == "node.id":
        return node.id
    if key == "node.hostname":
        return node.hostname
    return node.labels.get(key.removeprefix(LABEL_PREFIX))
