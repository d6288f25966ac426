"""Logs and usage that a member asks for, carried apart from the session.

Real gRPC and TLS; launcher, images and network are faulty on demand.
"""

import logging
from collections.abc import AsyncIterator

import pytest

from estiba.v1 import dispatcher_pb2 as dispatch
from estiba.v1 import types_pb2 as v1
from tests.support.agent_node import (
    IS_RUNNING,
    SHUTDOWN,
    TASK,
    Node,
    assignment,
    in_state,
    told_later,
)
from tests.support.dispatcher import Dispatcher


def write_log(node: Node, run: int, *texts: str, rotation: str = "") -> None:
    folder = node.folder / "logs" / TASK
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run}.log{rotation}").open("a") as file:
        for text in texts:
            file.write(f"2026-11-24T10:00:0{run}.123456789Z stdout F {text}\n")


async def said(member: Dispatcher, **request: object) -> list[str]:
    logs = dispatch.ReadLogs(task_ids=[TASK], **request)  # type: ignore[arg-type]
    return [
        line.line.decode()
        async for frame in member.open(dispatch.Purpose(logs=logs))
        for line in frame.logs.lines
    ]


async def test_logs_of_all_runs_are_carried_oldest_first(node: Node, member: Dispatcher) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        write_log(node, 1, "one", "two", rotation=".1")
        write_log(node, 1, "three")
        write_log(node, 2, "four", "five")

        assert await said(member) == ["one", "two", "three", "four", "five"]
        assert await said(member, tail=3) == ["three", "four", "five"]


async def test_followed_logs_go_on_through_rotation_and_the_next_run(
    node: Node, member: Dispatcher
) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        write_log(node, 1, "one")
        logs = dispatch.ReadLogs(task_ids=[TASK], follow=True)
        frames = member.open(dispatch.Purpose(logs=logs))

        assert await next_lines(frames) == ["one"]
        folder = node.folder / "logs" / TASK
        write_log(node, 1, "two")
        (folder / "1.log").rename(folder / "1.log.1")
        write_log(node, 1, "three")
        write_log(node, 2, "four")
        lines = [line for _ in range(3) for line in await next_lines(frames)]
        assert lines == ["two", "three", "four"]


async def next_lines(frames: AsyncIterator[dispatch.Frame]) -> list[str]:
    frame = await anext(frames)
    return [line.line.decode() for line in frame.logs.lines]


async def test_a_slow_reader_of_logs_delays_no_heartbeat(node: Node, member: Dispatcher) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        write_log(node, 1, *("x" * 1000 for _ in range(50_000)))
        frames = member.open(dispatch.Purpose(logs=dispatch.ReadLogs(task_ids=[TASK])))
        await anext(frames)
        member.desire(TASK, SHUTDOWN)
        await member.status(TASK, in_state(v1.TASK_STATE_SHUTDOWN), within_s=2)
        assert len(member.hellos) == 1
        read = [frame async for frame in frames]
        assert read[-1].end.error == ""


async def test_a_task_unknown_here_is_a_warning(node: Node, member: Dispatcher) -> None:
    async with node.agent(member):
        await member.until(lambda: bool(member.hellos))
        purpose = dispatch.Purpose(logs=dispatch.ReadLogs(task_ids=["who"]))
        frames = [frame async for frame in member.open(purpose)]

    assert frames[0].logs.warnings == ["node node-1 knows no task who"]


async def test_usage_is_carried_when_asked_for(node: Node, member: Dispatcher) -> None:
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        purpose = dispatch.Purpose(usage=dispatch.ReadUsage())
        frames = [frame async for frame in member.open(purpose)]

    assert frames[0].usage.tasks[TASK].pids == 1
    assert frames[1].HasField("end")


async def test_a_reader_that_goes_away_in_the_middle_is_said_in_one_line(
    node: Node, member: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="agent.streams")
    member.assign(assignment())
    async with node.agent(member):
        await member.status(TASK, IS_RUNNING)
        write_log(node, 1, *("x" * 1000 for _ in range(50_000)))
        frames = member.open(dispatch.Purpose(logs=dispatch.ReadLogs(task_ids=[TASK])))
        await anext(frames)
        await frames.aclose()
        await told_later(lambda: "ended early" in caplog.text)

    (said_,) = [each.getMessage() for each in caplog.records if "ended early" in each.getMessage()]
    assert said_.endswith("its reader has gone") or "CANCELLED" in said_
    assert "\n" not in said_
