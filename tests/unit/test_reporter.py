"""The reporter: what is told at once, what only if it lasts, and what again."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent import reporter
from agent.reporter import Reporter
from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1


class Member:
    """Takes reports; says of each that it is stored, unless told otherwise."""

    def __init__(self, told_by: Reporter) -> None:
        self.reporter = told_by
        self.answers = True
        self.reports: asyncio.Queue[dict[str, int]] = asyncio.Queue()

    async def take(self, report: dispatch.Report) -> None:
        self.reports.put_nowait({each.task_id: each.status.state for each in report.tasks})
        if self.answers:
            self.reporter.stored(report.number)

    async def hears(self) -> dict[str, int]:
        async with asyncio.timeout(5):
            return await self.reports.get()


@pytest.fixture
async def member() -> AsyncIterator[Member]:
    told_by = Reporter()
    member = Member(told_by)
    running = asyncio.create_task(told_by.run(member.take), name="reporter")
    yield member
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def status(state: v1.TaskState.ValueType) -> v1.TaskStatus:
    return v1.TaskStatus(state=state)


async def test_what_a_task_passes_through_is_not_told(member: Member) -> None:
    member.reporter.publish("t", status(v1.TASK_STATE_PREPARING), passing=True)
    await asyncio.sleep(0)
    member.reporter.publish("t", status(v1.TASK_STATE_RUNNING), passing=False)
    assert await member.hears() == {"t": v1.TASK_STATE_RUNNING}


async def test_what_lasts_is_told_though_the_next_was_expected(member: Member) -> None:
    member.reporter.publish("t", status(v1.TASK_STATE_PREPARING), passing=True)
    assert await member.hears() == {"t": v1.TASK_STATE_PREPARING}


async def test_one_task_that_rests_does_not_tell_of_another_on_its_way(member: Member) -> None:
    member.reporter.publish("slow", status(v1.TASK_STATE_PREPARING), passing=True)
    member.reporter.publish("t", status(v1.TASK_STATE_RUNNING), passing=False)
    assert await member.hears() == {"t": v1.TASK_STATE_RUNNING}
    assert await member.hears() == {"slow": v1.TASK_STATE_PREPARING}


async def test_what_changes_while_a_report_is_under_way_is_told_together(member: Member) -> None:
    member.answers = False
    member.reporter.publish("a", status(v1.TASK_STATE_RUNNING), passing=False)
    assert await member.hears() == {"a": v1.TASK_STATE_RUNNING}
    for task_id in ("a", "b"):
        member.reporter.publish(task_id, status(v1.TASK_STATE_WAITING), passing=False)
    member.answers = True
    member.reporter.stored(1)
    assert await member.hears() == {"a": v1.TASK_STATE_WAITING, "b": v1.TASK_STATE_WAITING}


async def test_a_report_that_is_never_stored_is_told_again(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "SEND_AGAIN_S", 0.05)
    member.answers = False
    member.reporter.publish("a", status(v1.TASK_STATE_RUNNING), passing=False)
    assert await member.hears() == await member.hears()
