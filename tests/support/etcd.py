"""A real etcd on loopback, for one test or many."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.errors import UnavailableError
from controlplane.store.etcd import EtcdStore
from estiba.kit.tls import TlsFiles
from tests.support.waiting import stretched

START_TIMEOUT_S = stretched(30.0)


@dataclass(slots=True)
class Etcd:
    """A server that can be stopped, killed and started again on its data."""

    folder: Path
    port: int
    peer_port: int
    tls: TlsFiles | None
    """What a client needs; the server uses ca, and server.crt and server.key beside it."""
    arguments: Sequence[str] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("etcd is not running")
        return self._process.pid

    def store(self, *, timeout_s: float = 5.0) -> EtcdStore:
        return EtcdStore([self.endpoint], tls=self.tls, timeout_s=timeout_s)

    async def start(self) -> None:
        """Start the server and wait until it answers."""
        process = self._process = self._launch()
        store = self.store()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await _answers(store):
                    if process.poll() is not None:
                        raise RuntimeError((self.folder / "etcd.log").read_text()[-4000:])
                    await asyncio.sleep(0.02)
        finally:
            await store.close()

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self.folder / "etcd.log").open("ab") as log:
            # Not asyncio's: the server outlives the event loop of one test.
            return subprocess.Popen(self._command_line(), stdout=log, stderr=log)

    async def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            await asyncio.to_thread(self._process.wait)
        self._process = None

    def _command_line(self) -> list[str]:
        scheme = "http" if self.tls is None else "https"
        client = f"{scheme}://{self.endpoint}"
        peer = f"http://127.0.0.1:{self.peer_port}"
        command = [
            "etcd",
            "--name=test",
            f"--data-dir={self.folder / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=test={peer}",
            "--logger=zap",
            *self.arguments,
        ]
        if self.tls is not None:
            folder = self.tls.ca.parent
            command += [
                f"--trusted-ca-file={self.tls.ca}",
                f"--cert-file={folder / 'server.crt'}",
                f"--key-file={folder / 'server.key'}",
                "--client-cert-auth",
            ]
        return command


@asynccontextmanager
async def start_etcd(
    folder: Path,
    *,
    tls: TlsFiles | None = None,
    unsafe_no_fsync: bool = True,
    arguments: Sequence[str] = (),
) -> AsyncIterator[Etcd]:
    """Run an etcd with its data in ``folder`` until the block ends."""
    etcd = prepare_etcd(folder, tls=tls, unsafe_no_fsync=unsafe_no_fsync, arguments=arguments)
    try:
        await etcd.start()
        yield etcd
    finally:
        await etcd.stop()


def prepare_etcd(
    folder: Path,
    *,
    tls: TlsFiles | None = None,
    unsafe_no_fsync: bool = True,
    arguments: Sequence[str] = (),
) -> Etcd:
    """Choose ports and options; the caller starts and stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--unsafe-no-fsync", *arguments] if unsafe_no_fsync else arguments
    port, peer_port = _free_ports(2)
    return Etcd(folder, port, peer_port, tls, options)


async def _answers(store: EtcdStore) -> bool:
    try:
        await store.revision()
    except UnavailableError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago; all are held while they are chosen."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
