"""estibad: build every object, listen, and stop in good order.

Anything unforeseen ends the program; whoever supervises it starts it again, into loops
that converge.
"""

import asyncio
import importlib.metadata
import logging
import random
import signal
import sys
import uuid
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from controlplane import config as configuration
from controlplane.api import server
from controlplane.api.certificates import CertificatesServicer
from controlplane.api.control import ControlServicer
from controlplane.api.corelog import TraceReader
from controlplane.api.dispatcher import DispatcherServicer, PeerServicer
from controlplane.api.joining import Joining
from controlplane.api.logs import Logs
from controlplane.api.nodes import Nodes
from controlplane.api.peers import GrpcPeers
from controlplane.api.services import Services
from controlplane.api.streams import Streams
from controlplane.api.tasks import Tasks
from controlplane.api.tokens import Tokens
from controlplane.api.usage import UsageReader
from controlplane.api.watch import Watches
from controlplane.api.writing import Writer
from controlplane.authority.issuing import Authority
from controlplane.config import Config
from controlplane.credentials import Credentials
from controlplane.errors import EstibaError, UnavailableError
from controlplane.loops.census import Census
from controlplane.loops.instruments import Instruments
from controlplane.loops.settings import Timing
from controlplane.member import Member, Surroundings
from controlplane.store.etcd import EtcdStore
from controlplane.store.lease import LeaseKeeper
from controlplane.web.discovery import discovery_route, readiness_route
from controlplane.web.join import JoinRoutes, serve_joining
from estiba import wire
from estiba.kit import logs
from estiba.kit.clock import SystemClock
from estiba.kit.lag import LagMonitor
from estiba.kit.livetls import show_remaining
from estiba.kit.notify import Notifier
from estiba.kit.race import race
from estiba.kit.refusals import Refusals
from estiba.kit.seldom import Seldom
from estiba.kit.serve import health_route, metrics_route, registry_for
from estiba.kit.serve import serve as serve_web
from estiba.kit.tables import TableError
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

RETRY_DELAY_S = 0.5


class Program:
    """One estibad: everything it is made of."""

    def __init__(self, config: Config, credentials: Credentials) -> None:
        self._config = config
        self._credentials = credentials
        self._timing = Timing(down_after_s=config.down_after_s)
        self._clock = SystemClock()
        self._notifier = Notifier()
        self._registry = registry_for("estibad")
        self.refusals = Refusals(self._registry, self._clock, listeners=("api", "web", "join"))
        self._instruments = Instruments(self._registry)
        self._lag = LagMonitor(self._registry)
        tls, etcd_tls = credentials.tls, credentials.etcd_tls
        lives = {"member": lambda: tls.life, "etcd-client": lambda: etcd_tls.life}
        show_remaining(self._registry, lives, self._clock)
        self._version = importlib.metadata.version("estiba")
        self._peers = GrpcPeers(tls)
        self._store = EtcdStore(
            config.etcd_endpoints,
            tls=etcd_tls,
            observe=self._instruments.observe_store_request,
        )
        self._member = self._build_member()
        self._census = Census(
            self._member.cache, lambda: self._member.leads, registry=self._registry
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        async with AsyncExitStack() as cleanup:
            cleanup.push_async_callback(self._store.close)
            cleanup.push_async_callback(self._peers.close)
            await race(self._serve(), _wait(stopping))
            self._notifier.stopping()
            log.info("stopped")

    async def _serve(self) -> None:
        await self._wait_for_etcd()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lag.run(), name="lag")
            group.create_task(self._credentials.run(self._clock), name="certificates")
            group.create_task(self._notifier.stay_alive(), name="alive")
            group.create_task(self._member.run(), name="member")
            group.create_task(self._listen(), name="listen")

    async def _wait_for_etcd(self) -> None:
        waiting = Seldom()
        while True:
            try:
                await self._store.start()
            except UnavailableError as error:
                if waiting.due(self._clock.monotonic()):
                    log.warning("waiting for etcd: %s", error)
                    self._notifier.status(f"waiting for etcd: {error}")
                await self._clock.sleep(RETRY_DELAY_S)
            else:
                return

    async def _listen(self) -> None:
        cache = self._member.cache
        config = self._config
        async with AsyncExitStack() as opened:
            address = await opened.enter_async_context(self._serve_web())
            log.info("metrics, health and discovery at %s", address)
            await cache.ready.wait()
            port = await opened.enter_async_context(self._serve_api())
            # Agents look for another member now, not when the server's grace ends.
            opened.callback(self._member.sessions.let_go)
            log.info("%s serves at %s, port %d", config.member_id, config.listen, port)
            if self._credentials.authority is not None:
                joining = self._serve_joining(self._credentials.authority)
                log.info("machines join at %s", await opened.enter_async_context(joining))
            self._notifier.ready(f"{config.member_id} serves at {config.listen}")
            await asyncio.Event().wait()

    def _serve_web(self) -> AbstractAsyncContextManager[str]:
        cache = self._member.cache
        return serve_web(
            listen=self._config.web_listen,
            tls=self._credentials.tls,
            routes=(
                metrics_route(self._registry, before=self._census.take),
                health_route(lambda: ""),
                readiness_route(cache),
                discovery_route(cache),
            ),
            on_refused=self.refusals.at("web"),
            on_denied=self._denied,
        )

    def _denied(self, peer: str, sentence: str) -> None:
        self._instruments.denied_calls.inc()
        log.warning("refused a request from %s: %s", peer, sentence)

    def _serve_api(self) -> AbstractAsyncContextManager[int]:
        streams = self._build_streams()
        return server.serve(
            listen=self._config.listen,
            tls=self._credentials.tls,
            control=self._build_control(streams),
            certificates=CertificatesServicer(
                self._member.cache,
                self._clock,
                authority=self._credentials.authority,
                member_id=self._config.member_id,
            ),
            dispatcher=DispatcherServicer(self._member.sessions, streams),
            peer=PeerServicer(streams),
            on_denied=self._instruments.denied_calls.inc,
            clock=self._clock,
        )

    def _serve_joining(self, authority: Authority) -> AbstractAsyncContextManager[str]:
        joining = Joining(
            self._store,
            self._member.cache,
            self._clock,
            authority,
            address=self._config.advertise,
        )
        return serve_joining(
            JoinRoutes(joining, self._clock, self._instruments.count_join),
            listen=self._config.join_listen,
            tls=self._credentials.tls,
            on_refused=self.refusals.at("join"),
        )

    def _build_member(self) -> Member:
        config = self._config
        keeper = LeaseKeeper(
            self._store,
            clock=self._clock,
            ttl_s=self._timing.member_lease_s,
            client=self._store.lease_client,
        )
        return Member(
            Surroundings(
                store=self._store,
                clock=self._clock,
                keeper=keeper,
                new_id=_new_id,
                random=random.random,
            ),
            registration=v1.Member(
                id=config.member_id,
                address=config.advertise,
                web_address=config.web_advertise,
                join_address=config.join_advertise,
                version=self._version,
                started_at=wire.timestamp(self._clock.now()),
            ),
            cluster_name=config.cluster_name,
            network=config.network,
            timing=self._timing,
            instruments=self._instruments,
        )

    def _build_streams(self) -> Streams:
        return Streams(
            sessions=self._member.sessions,
            cache=self._member.cache,
            peers=self._peers,
            member_id=self._config.member_id,
            timing=self._timing,
            new_id=_new_id,
        )

    def _build_control(self, streams: Streams) -> ControlServicer:
        cache = self._member.cache
        writer = Writer(self._store, cache, self._clock)
        usage = UsageReader(streams, cache)
        return ControlServicer(
            services=Services(writer, self._clock, _new_id),
            nodes=Nodes(writer, usage),
            tasks=Tasks(self._store, cache, usage),
            watches=Watches(cache, self._clock),
            logs=Logs(cache, streams),
            tokens=Tokens(
                self._store,
                cache,
                self._clock,
                authority=self._credentials.authority,
                member_id=self._config.member_id,
            ),
            cache=cache,
            version=self._version,
        )


def _new_id() -> str:
    return uuid.uuid4().hex


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def start(config_path: Path, core: TraceReader) -> None:
    """Run until told to end; what is wrong with the configuration is one sentence."""
    try:
        config = configuration.load(config_path)
        credentials = Credentials(config)
    except (TableError, ValueError) as fault:
        sys.exit(f"estibad: {fault}")
    logs.set_up("estibad", level=config.log_level)
    try:
        asyncio.run(_run(config, credentials, core))
    except* EstibaError as fault:
        sys.exit(f"estibad: {fault.exceptions[0]}")


async def _run(config: Config, credentials: Credentials, core: TraceReader) -> None:
    program = Program(config, credentials)
    core.on_refused = program.refusals.at("api")
    await program.run()
