"""A certificate that is replaced while its program runs: servers show the new one, channels are
opened with it, and nothing is restarted.

What has been connected goes on as it was; TLS asks for a certificate only at the beginning.
The authority that we trust is read at the beginning alone.
"""

import logging
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry, Gauge

from estiba.kit.clock import Clock
from estiba.kit.handshakes import Refused
from estiba.kit.pem import Life, life_of
from estiba.kit.seldom import Seldom
from estiba.kit.tls import Pems, TlsFiles

log = logging.getLogger(__name__)

PERIOD_S = 10.0


class LiveTls:
    """The files as they were last read, and whatever must hear of it when they change.

    Args:
        check: is given the text of each certificate, and raises ValueError if it is not ours.

    Raises:
        ValueError: the files cannot be read, the key is not the certificate's, or ``check`` says
            so; names the file.
    """

    def __init__(self, files: TlsFiles, *, check: Callable[[bytes], None] | None = None) -> None:
        self.files = files
        self._check = check
        self._seen = _marks(files)
        self._pems, self._life = self._read()
        self._contexts: list[ssl.SSLContext] = []
        self._generation = 0

    @property
    def life(self) -> Life:
        return self._life

    @property
    def pems(self) -> Pems:
        return self._pems

    @property
    def generation(self) -> int:
        """Grows by one with each new certificate."""
        return self._generation

    def refresh(self) -> bool:
        """Take over the files if they have changed; return whether they had.

        Raises:
            ValueError: the new files are no good. What was in use stays in use, and the next
                call looks again.
        """
        seen = _marks(self.files)
        if seen == self._seen:
            return False
        pems, life = self._read()
        self._seen = seen
        if (pems.cert, pems.key) == (self._pems.cert, self._pems.key):
            return False
        for context in self._contexts:
            pems.load_into(context)
        self._pems, self._life = pems, life
        self._generation += 1
        return True

    async def run(self, clock: Clock) -> None:
        """Look at the files every few seconds, until cancelled."""
        failing = Seldom(every_s=600.0)
        while True:
            await clock.sleep(PERIOD_S)
            try:
                if self.refresh():
                    days = self._life.remaining_s(clock.now()) / 86400
                    log.info("%s: a new certificate, for %.1f days", self.files.cert, days)
            except ValueError as fault:
                if failing.due(clock.monotonic()):
                    log.warning("the former certificate stays in use: %s", fault)

    def _read(self) -> tuple[Pems, Life]:
        pems, life = _read(self.files)
        if self._check is not None:
            try:
                self._check(pems.cert)
            except ValueError as fault:
                raise ValueError(f"{self.files.cert}: {fault}") from fault
        return pems, life

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return credentials with the certificate of this moment."""
        return self._pems.channel_credentials()

    def server_context(self, on_refused: Refused | None = None) -> ssl.SSLContext:
        """Serve HTTPS, demand a certificate of every caller, and show whichever we have then."""
        context = self._pems.server_context(on_refused)
        self._contexts.append(context)
        return context

    def joining_context(self, on_refused: Refused | None = None) -> ssl.SSLContext:
        """Serve HTTPS to callers who have no certificate yet."""
        context = self.server_context(on_refused)
        context.verify_mode = ssl.CERT_NONE
        return context

    def server_credentials(self) -> grpc.ServerCredentials:
        """Serve gRPC, demand a certificate of every caller, and show whichever we have then."""
        shown = self._generation

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # Called by a thread of gRPC's as each handshake begins.
            nonlocal shown
            if shown == self._generation:
                return None
            shown = self._generation
            return self._pems.server_certificate()

        return grpc.dynamic_ssl_server_credentials(
            self._pems.server_certificate(),
            fetch,  # type: ignore[arg-type]  # The stubs do not know that None is: no other.
            require_client_authentication=True,
        )


def show_remaining(
    registry: CollectorRegistry, lives: Mapping[str, Callable[[], Life]], clock: Clock
) -> None:
    """Export how long each certificate is still good, read when it is asked for.

    Args:
        lives: by what the certificate is for, such as "member" and "etcd-client".
    """
    gauge = Gauge(
        "estiba_certificate_remaining_seconds",
        "How long the certificate is still good; negative once it has ended.",
        ("certificate",),
        registry=registry,
    )

    def remaining_s(life: Callable[[], Life]) -> float:
        return life().remaining_s(clock.now())

    for name, life in lives.items():
        gauge.labels(name).set_function(partial(remaining_s, life))


def _marks(files: TlsFiles) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_mark(path) for path in (files.cert, files.key))


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(files: TlsFiles) -> tuple[Pems, Life]:
    try:
        pems = files.read()
    except OSError as fault:
        raise ValueError(f"{fault.filename}: {fault.strerror}") from fault
    try:
        life = life_of(pems.cert)
        pems.server_context()
    except (ssl.SSLError, ValueError) as fault:
        raise ValueError(
            f"{files.cert}: holds no certificate that goes with the key in {files.key}"
            f" and the authority in {files.ca}: {fault}"
        ) from fault
    return pems, life
