"""The agent's program: read the configuration, build the parts, run until told to stop.

Stopping touches no container: the next agent finds them with the launcher.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from agent import clearing
from agent.assembly import Agent, Parts
from agent.config import Config, load
from agent.errors import AgentError, ConfigError, first_of
from agent.identity import live_tls
from agent.images import Images, Registry
from agent.launcher import Launcher
from agent.net.network import Network
from agent.runtime.cgroups import Cgroups
from agent.runtime.processes import lock_folder
from estiba.kit import logs
from estiba.kit.clock import SystemClock
from estiba.kit.notify import Notifier

log = logging.getLogger(__name__)

FAILED = 1
BAD_CONFIGURATION = 2


def main() -> None:
    arguments = parse_arguments()
    try:
        config = load(arguments.config)
        if not arguments.clear:
            live_tls(config)
    except (ConfigError, ValueError) as fault:
        end(str(fault), BAD_CONFIGURATION)
    logs.set_up("estiba-agent", level=config.log_level)
    try:
        lock_folder(config.state_dir)
    except BlockingIOError:
        end(f"another agent works in {config.state_dir}: stop it first", FAILED)
    if arguments.clear:
        clear_node(config)
    else:
        asyncio.run(run(config))


def clear_node(config: Config) -> None:
    try:
        asyncio.run(leave(config))
    except* (AgentError, OSError) as faults:
        end(f"this node is not cleared: {first_of(faults)}", FAILED)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="estiba-agent", description="Run containers on a node.")
    parser.add_argument("--config", type=Path, required=True, help="the configuration, TOML")
    parser.add_argument(
        "--clear",
        action="store_true",
        help="stop every container, remove all that the agent has made, and end",
    )
    return parser.parse_args()


def end(sentence: str, code: int) -> NoReturn:
    sys.stderr.write(f"estiba-agent: {sentence}\n")
    sys.exit(code)


async def run(config: Config) -> None:
    """Run the agent until SIGTERM or SIGINT."""
    notifier = Notifier()
    running = asyncio.create_task(_run(config, notifier), name="agent")

    def stop() -> None:
        notifier.stopping()
        running.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await running
    except asyncio.CancelledError:
        log.info("stopped; containers go on")


async def _run(config: Config, notifier: Notifier) -> None:
    hands = Hands.of(config)
    async with hands.at_work():
        await Agent(config, hands.parts(config, notifier)).run()


async def leave(config: Config) -> None:
    """Stop every container, and leave nothing of this node.

    Raises:
        AgentError, OSError: something of it is left; names it.
    """
    hands = Hands.of(config)
    agent = Agent(config, hands.parts(config, Notifier({})))
    async with hands.at_work():
        await clearing.clear(
            agent,
            launcher=hands.launcher,
            network=hands.network,
            cgroups=hands.cgroups,
            state=config.state_dir,
        )


@dataclass(frozen=True, slots=True)
class Hands:
    """What touches the machine."""

    launcher: Launcher
    network: Network
    cgroups: Cgroups

    @classmethod
    def of(cls, config: Config) -> Self:
        return cls(
            Launcher(config.launcher_socket),
            Network(config.state_dir),
            Cgroups(config.cgroup_parent),
        )

    def parts(self, config: Config, notifier: Notifier) -> Parts:
        registries = {
            name: Registry(each.address, each.ca) for name, each in config.registries.items()
        }
        return Parts(
            launcher=self.launcher,
            images=Images(config.state_dir / "images", registries),
            network=self.network,
            cgroups=self.cgroups,
            clock=SystemClock(),
            notifier=notifier,
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        await self.network.start()
        try:
            async with asyncio.TaskGroup() as group:
                connection = group.create_task(self.launcher.run(), name="agent.launcher")
                yield
                connection.cancel()
        finally:
            await self.network.close()
