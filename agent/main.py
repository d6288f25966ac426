"""The agent's program: read the configuration, build the parts, run until told to stop.

Stopping touches no container: the next agent finds them with the launcher.
"""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from agent.assembly import Agent, Parts
from agent.config import Config, load
from agent.errors import ConfigError
from agent.images import Images, Registry
from agent.launcher import Launcher
from agent.net.network import Network
from agent.runtime.cgroups import Cgroups
from estiba.kit import logs
from estiba.kit.clock import SystemClock
from estiba.kit.notify import Notifier
from estiba.kit.tls import Identity, Role, identity_of

log = logging.getLogger(__name__)

BAD_CONFIGURATION = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="estiba-agent", description="Run containers on a node.")
    parser.add_argument("--config", type=Path, required=True, help="the configuration, TOML")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
        check_identity(config)
    except ConfigError as fault:
        sys.stderr.write(f"estiba-agent: {fault}\n")
        sys.exit(BAD_CONFIGURATION)
    logs.set_up("estiba-agent", level=config.log_level)
    asyncio.run(run(config))


def check_identity(config: Config) -> None:
    """See that the certificate is this node's: with another one members would refuse us, and
    a refusal means that everything here must be stopped.

    Raises:
        ConfigError: it is not, or cannot be read.
    """
    try:
        holder = identity_of(config.tls.cert.read_bytes())
    except (OSError, ValueError) as fault:
        raise ConfigError(f"tls.cert: {fault}") from fault
    if holder != Identity(Role.NODE, config.node_id):
        raise ConfigError(f"tls.cert: it is {holder}'s, and node_id is {config.node_id}")


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
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    launcher = Launcher(config.launcher_socket)
    network = Network(config.state_dir)
    registries = {name: Registry(each.address, each.ca) for name, each in config.registries.items()}
    parts = Parts(
        launcher=launcher,
        images=Images(config.state_dir / "images", registries),
        network=network,
        cgroups=Cgroups(config.cgroup_parent),
        clock=SystemClock(),
        notifier=notifier,
    )
    agent = Agent(config, parts)
    await network.start()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(launcher.run(), name="agent.launcher")
            group.create_task(agent.run(), name="agent.work")
    finally:
        await network.close()
