"""Which node a task goes to, and why. Pure."""

from controlplane.scheduler.constraints import (
    Constraint,
    first_unmet,
    parse_constraint,
    satisfies,
)
from controlplane.scheduler.ledger import Ledger
from controlplane.scheduler.placement import Placement, Request, place

__all__ = [
    "Constraint",
    "Ledger",
    "Placement",
    "Request",
    "first_unmet",
    "parse_constraint",
    "place",
    "satisfies",
]
