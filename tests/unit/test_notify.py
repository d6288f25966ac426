"""What a service manager is told, on a real datagram socket."""

import asyncio
import os
import uuid
from pathlib import Path

import pytest

from agent.kernel import notify
from estiba.kit.notify import Notifier
from estiba.kit.race import race
from tests.support.notify import listening


@pytest.fixture(params=["a path", "an abstract address"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "a path":
        return str(tmp_path / "not@ify")
    return f"@estiba-test-{uuid.uuid4().hex}"


def test_a_manager_is_told_that_a_program_serves_and_that_it_stops(address: str) -> None:
    with listening(address) as manager:
        notifier = Notifier(manager.environment)
        notifier.status("waiting for\nme")
        notifier.ready("serves")
        notifier.stopping()
        assert manager.hear("READY=1") == ["STATUS=waiting for me", "READY=1"]
        assert manager.hear("STOPPING=1") == ["STATUS=serves", "STOPPING=1"]


def test_small_programs_tell_it_in_the_same_way(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(address) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.notify("READY=1", "STATUS=serves")
        assert manager.hear("STATUS=serves") == ["READY=1", "STATUS=serves"]


async def test_a_watched_program_says_that_it_lives_twice_as_often_as_is_demanded(
    address: str,
) -> None:
    with listening(address) as manager:
        notifier = Notifier(manager.watching(within_s=0.2))
        began_s = asyncio.get_running_loop().time()

        async def hear_five() -> None:
            for _ in range(5):
                await asyncio.to_thread(manager.hear, "WATCHDOG=1")

        await race(notifier.stay_alive(), hear_five())
        assert 0.4 <= asyncio.get_running_loop().time() - began_s < 2.0


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}],
)
async def test_who_is_not_watched_says_nothing_of_its_life(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with asyncio.timeout(5):
        await Notifier(environment).stay_alive()
    assert notify.watchdog_s() == 0.0


def test_small_programs_know_what_is_demanded_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert notify.watchdog_s() == 30.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_s() == 30.0


def test_a_manager_that_is_gone_or_does_not_read_harms_nobody(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("serves")
    with listening(tmp_path / "deaf") as manager:
        notifier = Notifier(manager.environment)
        for _ in range(2000):
            notifier.status("serves")
