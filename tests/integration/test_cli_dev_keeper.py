"""A kept program runs again when it ends, and stays stopped when it was stopped."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.dev.keeper import Keeper
from controlplane.cli.dev.plan import Program


class Kept:
    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    async def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                status = self.keeper.status()
                if true(status):
                    return status
                await asyncio.sleep(0.01)


@pytest.fixture
async def keep(tmp_path: Path) -> AsyncIterator[Callable[..., Kept]]:
    running = []

    def start(*argv: str) -> Kept:
        keeper = Keeper(
            Program("one", argv, "", 0),
            log_file=tmp_path / "one.log",
            environment={"PATH": os.environ["PATH"], "GREETING": "hola"},
        )
        running.append((keeper, asyncio.create_task(keeper.run())))
        keeper.start()
        return Kept(keeper)

    yield start
    for keeper, task in running:
        await keeper.stop(kill=True)
        task.cancel()
        await asyncio.wait([task])


async def test_a_killed_program_runs_again_under_another_pid(keep: Callable[..., Kept]) -> None:
    kept = keep("sleep", "1000")
    first = await kept.until(lambda status: status["state"] == "running")
    os.kill(first["pid"], signal.SIGKILL)
    second = await kept.until(lambda status: status["restarts"] == 1 and status["pid"] != 0)
    assert second["pid"] != first["pid"]
    assert second["last_exit"] == "signal 9"


async def test_a_stopped_program_stays_stopped_until_it_is_started(
    keep: Callable[..., Kept],
) -> None:
    kept = keep("sleep", "1000")
    first = await kept.until(lambda status: status["state"] == "running")
    await kept.keeper.stop()
    stopped = kept.keeper.status()
    assert (stopped["pid"], stopped["last_exit"]) == (0, "signal 15")
    await kept.until(lambda status: status["state"] == "stopped")
    kept.keeper.start()
    again = await kept.until(lambda status: status["state"] == "running")
    assert again["pid"] != first["pid"]
    assert again["restarts"] == 0


async def test_a_program_that_cannot_live_is_started_more_and_more_rarely(
    keep: Callable[..., Kept], tmp_path: Path
) -> None:
    kept = keep("sh", "-c", "echo $GREETING; exit 3")
    status = await kept.until(lambda status: status["restarts"] == 3)
    assert status["last_exit"] == "exit code 3"
    assert (tmp_path / "one.log").read_text().splitlines()[:3] == ["hola"] * 3


async def test_a_waiting_program_can_be_stopped(keep: Callable[..., Kept]) -> None:
    kept = keep("false")
    await kept.until(lambda status: status["restarts"] == 4)
    await kept.keeper.stop()
    assert (await kept.until(lambda status: status["state"] == "stopped"))["pid"] == 0
