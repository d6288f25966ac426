"""An outage of the store is in the log, and does not fill it."""

import asyncio
import logging

import pytest

from controlplane.errors import UnavailableError
from controlplane.store.lease import LeaseKeeper
from controlplane.store.memory import MemoryStore
from estiba.kit.clock import LoopClock
from tests.support import virtual_time

OUTAGE_S = 600.0


class Gone(MemoryStore):
    """A store that gives no lease at first."""

    async def grant(self, ttl_s: int) -> int:
        if asyncio.get_running_loop().time() < OUTAGE_S:
            raise UnavailableError("the store is away")
        return await super().grant(ttl_s)


def test_an_outage_of_ten_minutes_is_said_once_and_then_every_ten_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        keeper = LeaseKeeper(Gone(), clock=LoopClock())
        running = asyncio.create_task(keeper.run())
        await keeper.acquired()
        running.cancel()
        await asyncio.wait([running])

    with caplog.at_level(logging.INFO):
        virtual_time.run(story())

    said = [record for record in caplog.records if "the store is away" in record.message]
    assert 1 < len(said) <= OUTAGE_S / 10
