"""Addresses to listen on, and the event loop's lag."""

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from estiba.kit.lag import PERIOD_S, LagMonitor
from estiba.kit.serve import split_address


@pytest.mark.parametrize(
    ("address", "parts"),
    [("10.0.0.1:80", ("10.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("n1:7490", ("n1", 7490))],
)
def test_an_address_is_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "80", ":80", "host:", "host:http", "host:65536"])
def test_anything_else_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST:PORT"):
        split_address(address)


def stand_still(length_s: float) -> None:
    time.sleep(length_s)


async def test_a_loop_that_stands_still_is_seen_at_once_and_counted_afterwards() -> None:
    registry = CollectorRegistry()
    monitor = LagMonitor(registry)
    measuring = asyncio.create_task(monitor.run(), name="lag")
    await asyncio.sleep(0)
    assert monitor.current_lag_s == 0.0

    stalled_s = 3 * PERIOD_S
    stand_still(stalled_s)

    # Nothing has come back from its sleep yet, and still it is known.
    assert monitor.current_lag_s >= stalled_s - PERIOD_S
    await asyncio.sleep(PERIOD_S)
    assert monitor.current_lag_s >= stalled_s - PERIOD_S
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
    late = registry.get_sample_value("estiba_event_loop_lag_seconds_sum")
    assert late is not None
    assert late >= stalled_s - PERIOD_S
