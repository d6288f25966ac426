"""estibad and a service manager: what it is told while there is no etcd, and once there is."""

import asyncio
import signal
from pathlib import Path

from tests.support.estibad import control_plane
from tests.support.notify import listening


def test_estibad_says_what_it_waits_for_then_that_it_serves_lives_and_stops(
    tmp_path: Path,
) -> None:
    with (
        listening(tmp_path / "notify") as manager,
        control_plane(tmp_path, members=1) as plane,
    ):
        (member,) = plane.members
        member.end()
        asyncio.run(plane.etcd.stop())
        # The start that the block began with told nobody.
        member.environment = manager.environment | {"WATCHDOG_USEC": "1000000"}
        member.start()
        assert manager.hear("STATUS=")[-1].startswith("STATUS=waiting for etcd: ")
        asyncio.run(plane.etcd.start())
        manager.hear("READY=1")
        serving = f"STATUS=estibad-1 serves at {member.address}"
        assert manager.hear("WATCHDOG=1") == [serving, "WATCHDOG=1"]
        manager.hear("WATCHDOG=1")
        assert member.end(signal.SIGTERM) == 0
        manager.hear("STOPPING=1")
