"""Take a node out of service for good: leave no container, link, rule or file of the agent's.

What the launcher keeps is its own; whoever stops it removes that.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Protocol

from agent.errors import AgentError, LauncherLostError
from agent.launcher import Launcher
from agent.net.network import Network
from agent.runtime.cgroups import Cgroups
from agent.runtime.trees import remove_tree

log = logging.getLogger(__name__)

# What lies in the state folder. Nothing else there is ever removed.
STATE = (
    *("assignments", "assignments.tmp", "tasks", "containers", "logs", "images"),
    *("network.json", "network.json.new", "totals.jsonl", "totals.jsonl.new", "lock"),
)
KILLED_WITHIN_S = 20.0
LOOK_EVERY_S = 0.05


class Clearing(Protocol):
    async def clear(self) -> None:
        """Stop every container gracefully, and return when nothing is left of any."""


async def clear(
    agent: Clearing, *, launcher: Launcher, network: Network, cgroups: Cgroups, state: Path
) -> None:
    """Safe to repeat, and after having been interrupted.

    Raises:
        AgentError: something cannot be removed; names it.
        OSError: a file cannot be.
    """
    mounted = mounts_below(state)
    if mounted:
        raise AgentError(f"something is mounted at {mounted[0]}: unmount it, then try again")
    try:
        await launcher.list()
    except LauncherLostError as lost:
        log.warning("killing what runs, without the launcher: %s", lost)
        await asyncio.to_thread(kill_all, cgroups)
    else:
        await agent.clear()
        left = [each.container_id for each in await launcher.list()]
        if left:
            raise AgentError(f"container {left[0]} cannot be removed: see the launcher's log")
    await network.remove()
    await asyncio.to_thread(erase, state)


def kill_all(cgroups: Cgroups) -> None:
    """Kill whatever runs in the containers' cgroups, and remove these."""
    deadline = time.monotonic() + KILLED_WITHIN_S
    while names := cgroups.names():
        for name in names:
            cgroups.kill_all(name)
            cgroups.remove(name)
        if time.monotonic() > deadline:
            raise AgentError(f"container {min(names)} does not end after SIGKILL")
        time.sleep(LOOK_EVERY_S)
    cgroups.retire()


def erase(state: Path) -> None:
    """Delete what the agent keeps, and the folder unless somebody else keeps something there."""
    for name in STATE:
        path = state / name
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    if state.is_dir() and not any(state.iterdir()):
        state.rmdir()


def mounts_below(folder: Path) -> list[str]:
    """Return where something is mounted in a folder: to delete there could reach elsewhere."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (line.split()[4] for line in lines)
    return [point for point in points if point.startswith(f"{folder}/")]
