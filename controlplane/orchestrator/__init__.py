"""Which tasks exist, and why. Pure."""

from controlplane.orchestrator.actions import (
    Action,
    CreateTask,
    Decision,
    ForgetTask,
    MarkFound,
    MarkLost,
    RemoveTask,
    StopTask,
)
from controlplane.orchestrator.lost import UNKNOWN_GRACE_S
from controlplane.orchestrator.reaping import templates_to_delete
from controlplane.orchestrator.replicated import plan_service
from controlplane.orchestrator.summary import ServiceSummary, summarize

__all__ = [
    "UNKNOWN_GRACE_S",
    "Action",
    "CreateTask",
    "Decision",
    "ForgetTask",
    "MarkFound",
    "MarkLost",
    "RemoveTask",
    "ServiceSummary",
    "StopTask",
    "plan_service",
    "summarize",
    "templates_to_delete",
]
