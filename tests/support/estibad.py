"""Real estibads as processes, with a real etcd, all over mutual TLS on loopback."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
from grpc import aio

from controlplane.api.channels import CHANNEL_OPTIONS
from controlplane.api.sessions import Send
from controlplane.errors import DeniedError, UnavailableError
from estiba.kit.race import race
from estiba.kit.tls import MEMBER_CHANNEL_OPTIONS, MEMBER_SERVER_NAME, TlsFiles
from estiba.v1 import control_pb2_grpc, dispatcher_pb2_grpc
from estiba.v1 import dispatcher_pb2 as dispatch
from tests.support.certificates import Certificates, issue
from tests.support.etcd import Etcd, prepare_etcd
from tests.support.waiting import stretched

PROGRAM = Path(sys.executable).parent / "estibad"


@dataclass(slots=True)
class Estibad:
    """One member: its configuration is a file, its state is in etcd."""

    name: str
    folder: Path
    port: int
    web_port: int
    join_port: int
    environment: dict[str, str] = field(default_factory=dict)
    """What it finds in its own, besides ours."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def web_address(self) -> str:
        return f"127.0.0.1:{self.web_port}"

    @property
    def join_address(self) -> str:
        return f"127.0.0.1:{self.join_port}"

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            command = [str(PROGRAM), "--config", str(self.folder / f"{self.name}.toml")]
            environment = os.environ | self.environment
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait, and return the exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        # One that was stopped ends by no signal but SIGKILL until it goes on.
        self._process.send_signal(signal.SIGCONT)
        code = self._process.wait(timeout=stretched(30))
        self._process = None
        return code


@dataclass(slots=True)
class ControlPlane:
    certificates: Certificates
    etcd: Etcd
    members: list[Estibad]

    @asynccontextmanager
    async def channel(self, holder: str, *, member: int = 0) -> AsyncIterator[aio.Channel]:
        """Connect to a member with one of the certificates."""
        channel = aio.secure_channel(
            self.members[member].address,
            self.certificates.of(holder).channel_credentials(),
            options=[*CHANNEL_OPTIONS, *MEMBER_CHANNEL_OPTIONS],
        )
        async with channel:
            await asyncio.wait_for(channel.channel_ready(), stretched(20))
            yield channel

    async def metric(self, series: str, *, member: int = 0) -> float:
        """Read one series, as it is written with its labels."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"https://{self.members[member].web_address}/metrics",
                ssl=self.certificates.of("metrics").client_context(),
                server_hostname=MEMBER_SERVER_NAME,
            ) as answer,
        ):
            lines = (await answer.text()).splitlines()
        values = [line.split()[-1] for line in lines if line.startswith(f"{series} ")]
        assert len(values) == 1, series
        return float(values[0])

    @asynccontextmanager
    async def control(
        self, holder: str = "user", *, member: int = 0
    ) -> AsyncIterator["control_pb2_grpc.ControlAsyncStub"]:
        async with self.channel(holder, member=member) as channel:
            stub: control_pb2_grpc.ControlAsyncStub = control_pb2_grpc.ControlStub(channel)
            yield stub


@contextmanager
def control_plane(
    folder: Path, *, members: int = 2, with_authority: int | None = None
) -> Iterator[ControlPlane]:
    """Run etcd and some members until the block ends.

    Args:
        with_authority: how many of the members hold it; None: all.
    """
    certificates = issue(folder)
    etcd = prepare_etcd(folder / "etcd", tls=_etcd_tls(folder))
    names = [f"estibad-{number}" for number in range(1, members + 1)]
    ports = iter(_free_ports(3 * members))
    running = [Estibad(name, folder, next(ports), next(ports), next(ports)) for name in names]
    holding = running[:with_authority]
    for member in running:
        tls = certificates.of(member.name)
        _write_config(member, tls, etcd, holds_authority=member in holding)
    try:
        asyncio.run(etcd.start())
        for member in running:
            member.start()
        yield ControlPlane(certificates, etcd, running)
    finally:
        for member in running:
            member.end()
        asyncio.run(etcd.stop())


def _etcd_tls(folder: Path) -> TlsFiles:
    """Lay the certificates of etcd where its helper looks for them."""
    tls = folder / "etcd-tls"
    tls.mkdir()
    for old, new in (
        ("etcd-ca.pem", "ca.pem"),
        ("etcd.pem", "server.crt"),
        ("etcd.pem", "server.key"),
        ("etcd-client.pem", "client.pem"),
    ):
        shutil.copy(folder / "pki" / old, tls / new)
    return TlsFiles(tls / "ca.pem", tls / "client.pem", tls / "client.pem")


def _write_config(member: Estibad, tls: TlsFiles, etcd: Etcd, *, holds_authority: bool) -> None:
    assert etcd.tls is not None
    joining = f"""
join_listen = "{member.join_address}"
join_advertise = "{member.join_address}"
[authority]
cert = "{tls.ca}"
key = "{tls.ca.with_name("ca-key.pem")}"
"""
    (member.folder / f"{member.name}.toml").write_text(f"""
member_id = "{member.name}"
cluster_name = "test"
listen = "{member.address}"
advertise = "{member.address}"
web_listen = "{member.web_address}"
{joining if holds_authority else ""}
[tls]
ca = "{tls.ca}"
cert = "{tls.cert}"
key = "{tls.key}"
[etcd]
endpoints = ["{etcd.endpoint}"]
ca = "{etcd.tls.ca}"
cert = "{etcd.tls.cert}"
key = "{etcd.tls.key}"
""")


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


class RemoteSessions:
    """What a simulated agent speaks to, over a real connection."""

    def __init__(self, channel: aio.Channel) -> None:
        self.stub: dispatcher_pb2_grpc.DispatcherAsyncStub = dispatcher_pb2_grpc.DispatcherStub(
            channel
        )

    async def serve(
        self, node_id: str, incoming: AsyncIterator[dispatch.AgentMessage], send: Send
    ) -> None:
        """Carry one session; the node is whom the channel's certificate names."""
        call = self.stub.Session()

        async def say() -> None:
            # Not to be written to any more: the call is over, and `hear` says why.
            with suppress(asyncio.InvalidStateError):
                async for message in incoming:
                    await call.write(message)
                await call.done_writing()
            await asyncio.Event().wait()

        async def hear() -> None:
            async for message in call:
                await send(message)

        try:
            await race(hear(), say())
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise DeniedError(error.details() or "") from error
            raise UnavailableError(error.details() or error.code().name) from error
        finally:
            call.cancel()


async def eventually(look: Callable[[], Awaitable[bool]], *, within_s: float, what: str) -> float:
    """Look again until it is true; return how many seconds that took."""
    begun_s = time.monotonic()
    while not await look():
        assert time.monotonic() - begun_s < within_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.05)
    return time.monotonic() - begun_s
