"""Put the agent together from its parts, and run them as one."""

import asyncio
import random
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from agent.assignments import Known, accept
from agent.book import Book
from agent.config import Config
from agent.connecting import Connector
from agent.health.checks import Checks
from agent.identity import live_tls
from agent.machine import capacity, describe
from agent.metrics.exporter import Exporter
from agent.metrics.sources import Cgroups
from agent.metrics.usage import UsageMeter
from agent.renewal import Renewal
from agent.reporter import Reporter
from agent.session import Session
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
from estiba.kit.livetls import LiveTls, show_remaining
from estiba.kit.notify import Notifier
from estiba.kit.refusals import Refusals
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
        clock = self._parts.clock
        tls = live_tls(self._config)
        connector = Connector(tls, clock)
        session = self._session(known, connector)
        renewal = Renewal(
            self._config,
            tls,
            members=lambda: session.members,
            connector=connector,
            clock=clock,
            random=random.random,
        )
        registry = registry_for("estiba-agent")
        lag = LagMonitor(registry)
        show_remaining(registry, {"node": lambda: tls.life}, clock)
        async with (
            self._serving(session, tls, registry),
            asyncio.TaskGroup() as group,
        ):
            notifier = self._parts.notifier
            notifier.ready(f"node {self._config.hostname}: {UNSERVED}")
            group.create_task(notifier.stay_alive(), name="agent.alive")
            group.create_task(lag.run(), name="agent.lag")
            group.create_task(tls.run(clock), name="agent.certificate")
            group.create_task(renewal.run(), name="agent.renewal")
            group.create_task(self._runners.run(), name="agent.tasks")
            group.create_task(session.run(), name="agent.session")

    def _serving(
        self, session: Session, tls: LiveTls, registry: CollectorRegistry
    ) -> AbstractAsyncContextManager[str]:
        """Serve metrics and health."""
        exporter = self._exporter(session, registry)
        refusals = Refusals(registry, self._parts.clock, listeners=("metrics",))
        return serve(
            listen=self._config.metrics_listen,
            tls=tls,
            routes=(
                metrics_route(registry, before=exporter.gather),
                health_route(lambda: "" if session.connected else UNSERVED),
            ),
            on_refused=refusals.at("metrics"),
        )

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

    def _session(self, known: Known | None, connector: Connector) -> Session:
        config, parts = self._config, self._parts
        usage = UsageMeter(tasks=self._runners, cgroups=parts.cgroups, clock=parts.clock)
        logs = LogReader(self._folders, node_id=config.node_id, name_of=self._runners.name_of)
        return Session(
            members=config.members,
            connector=connector,
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
