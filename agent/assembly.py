"""Put the agent together from its parts, and run them as one."""

import asyncio
import random
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from agent.assignments import Known, accept
from agent.book import Book
from agent.config import Config
from agent.health.checks import Checks
from agent.machine import capacity, describe
from agent.metrics.exporter import Exporter
from agent.metrics.sources import Cgroups
from agent.metrics.usage import UsageMeter
from agent.reporter import Reporter
from agent.session import Session, channel_opener
from agent.streams import Streams
from agent.tasks.bundles import Bundles
from agent.tasks.folders import Folders
from agent.tasks.journal import Journal
from agent.tasks.logs import LogReader
from agent.tasks.ports import Images, Launcher, Network
from agent.tasks.runner import Tools
from agent.tasks.runners import Runners
from estiba.kit.clock import Clock
from estiba.kit.lag import LagMonitor
from estiba.kit.notify import Notifier
from estiba.kit.serve import health_route, metrics_route, registry_for, serve

CREATED_AT_A_TIME = 8
UNSERVED = "no member serves this node"


class VersionedCgroups(Cgroups, Protocol):
    @property
    def version(self) -> int: ...


class VersionedLauncher(Launcher, Protocol):
    @property
    def protocol(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What touches the machine."""

    launcher: VersionedLauncher
    images: Images
    network: Network
    cgroups: VersionedCgroups
    clock: Clock
    notifier: Notifier


class Agent:
    """`run` works until cancelled, and touches no container then."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self._config = config
        self._parts = parts
        self._size = capacity(config.capacity)
        self._folders = Folders(config.state_dir)
        self._journal = Journal(self._folders)
        self._reporter = Reporter()
        self._runners = Runners(self._tools())

    def _tools(self) -> Tools:
        parts = self._parts
        return Tools(
            launcher=parts.launcher,
            images=parts.images,
            network=parts.network,
            checks=Checks(parts.launcher, parts.clock),
            bundles=Bundles(self._folders, nameservers=self._config.nameservers),
            folders=self._folders,
            journal=self._journal,
            clock=parts.clock,
            capacity=self._size,
            creating=asyncio.Semaphore(CREATED_AT_A_TIME),
            publish=self._reporter.publish,
        )

    async def run(self) -> None:
        """Take up what an earlier agent left, then serve a session and the metrics."""
        self._folders.make()
        known = self._load()
        await self._runners.adopt(known)
        session = self._session(known)
        registry = registry_for("estiba-agent")
        lag = LagMonitor(registry)
        exporter = self._exporter(session, registry)
        routes = (
            metrics_route(registry, before=exporter.gather),
            health_route(lambda: "" if session.connected else UNSERVED),
        )
        async with (
            serve(listen=self._config.metrics_listen, tls=self._config.tls, routes=routes),
            asyncio.TaskGroup() as group,
        ):
            notifier = self._parts.notifier
            notifier.ready(f"node {self._config.hostname}: {UNSERVED}")
            group.create_task(notifier.stay_alive(), name="agent.alive")
            group.create_task(lag.run(), name="agent.lag")
            group.create_task(self._runners.run(), name="agent.tasks")
            group.create_task(session.run(), name="agent.session")

    async def clear(self) -> None:
        """Stop all that an earlier agent left, as a node does that was removed; return when
        nothing is left of any container.
        """
        self._folders.make()
        known = self._load()
        await self._runners.adopt(known)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._runners.run(), name="agent.tasks")
            await self._book(known).clear()
            running.cancel()

    def _load(self) -> Known | None:
        kept = self._journal.load_assignments()
        return None if kept is None else accept(Known(), kept)[0]

    def _book(self, known: Known | None) -> Book:
        return Book(known, journal=self._journal, runners=self._runners, reporter=self._reporter)

    def _session(self, known: Known | None) -> Session:
        config, parts = self._config, self._parts
        usage = UsageMeter(tasks=self._runners, cgroups=parts.cgroups, clock=parts.clock)
        logs = LogReader(self._folders, node_id=config.node_id, name_of=self._runners.name_of)
        return Session(
            members=config.members,
            open_channel=channel_opener(config.tls.channel_credentials()),
            describe=lambda: describe(
                config,
                self._size,
                launcher_protocol=parts.launcher.protocol,
                cgroup_version=parts.cgroups.version,
            ),
            book=self._book(known),
            reporter=self._reporter,
            streams=Streams(logs, usage),
            clock=parts.clock,
            random=random.random,
            tell=lambda member: parts.notifier.status(
                f"node {config.hostname}: {f'member {member} serves it' if member else UNSERVED}"
            ),
        )

    def _exporter(self, session: Session, registry: CollectorRegistry) -> Exporter:
        exporter = Exporter(
            node=self._config.hostname,
            capacity=self._size,
            tasks=self._runners,
            cgroups=self._parts.cgroups,
            connected=lambda: session.connected,
            state_dir=self._config.state_dir,
        )
        registry.register(exporter)
        self._runners.on_exit(exporter.container_ended)
        return exporter
