"""Find the cluster and call it: its members in turn, again when one does not answer.

Every call may be sent twice: a create carries an id of ours, an update says what it
was based on, the rest name what is wanted.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controlplane.cli import local
from controlplane.cli.errors import CliError
from estiba.kit.tls import MEMBER_CHANNEL_OPTIONS, TlsFiles
from estiba.v1 import control_pb2_grpc

Q = TypeVar("Q")
R = TypeVar("R")

# How long to go on trying while no member answers, and how long one may take.
PATIENCE_S = 20.0
CALL_TIMEOUT_S = 10.0
ALIVE_TIMEOUT_S = 2.0
PAUSE_S = 0.2

# How the holder of a certificate that is no good has a better one.
RENEWAL = "on a control plane's machine `estiba cluster renew` makes a new one"

RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

CHANNEL_OPTIONS = (
    *MEMBER_CHANNEL_OPTIONS,
    # Members are reached directly, whatever proxy the shell uses for the web.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)


class RefusedError(CliError):
    """A member answered, and the answer is no; the message is its sentence."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class NoAnswerError(CliError):
    """A stream broke off, or no member answered: try again."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a cluster answers, and what to show there."""

    servers: tuple[str, ...]
    tls: TlsFiles


def find(
    servers: Sequence[str], tls_dir: Path | None, environment: Mapping[str, str] = os.environ
) -> Target:
    """Decide which cluster is meant: what was said, else the environment, else the local one,
    else the one that this machine controls.

    Raises:
        CliError: there is none, or there is nothing to identify ourselves with.
    """
    described = local.find(environment)
    named = [name for word in servers for name in word.split(",") if name]
    named = named or [name for name in environment.get("ESTIBA_SERVER", "").split(",") if name]
    if not named and described is None:
        raise CliError(
            f"no cluster: none runs in {local.folder(environment)} (start one with "
            "`estiba dev up`), this machine controls none (`estiba cluster init` makes it), "
            "and neither --server nor ESTIBA_SERVER names another"
        )
    tls = _tls(tls_dir, environment, described)
    for path in (tls.ca, tls.cert, tls.key):
        if not os.access(path, os.R_OK):
            fault = "are you root?" if path.exists() else "there is no such file"
            raise CliError(f"cannot read {path}, by which the cluster knows us: {fault}")
    return Target(tuple(named or (described or {}).get("servers", ())), tls)


def _tls(
    tls_dir: Path | None, environment: Mapping[str, str], described: Mapping[str, Any] | None
) -> TlsFiles:
    if tls_dir is not None:
        cert, key = tls_dir / "cert.pem", tls_dir / "key.pem"
        return TlsFiles(tls_dir / "ca.pem", cert, key if key.exists() else cert)
    given = [environment.get(f"ESTIBA_TLS_{name}", "") for name in ("CA", "CERT", "KEY")]
    if all(given):
        return TlsFiles(*map(Path, given))
    if any(given):
        raise CliError("ESTIBA_TLS_CA, ESTIBA_TLS_CERT and ESTIBA_TLS_KEY go together: set all")
    files = (described or {}).get("tls")
    if isinstance(files, dict):
        return TlsFiles(Path(files["ca"]), Path(files["cert"]), Path(files["key"]))
    raise CliError(
        "no certificate: name a folder with ca.pem, cert.pem and, unless the key is in there "
        "too, key.pem by --tls-dir, "
        "or set ESTIBA_TLS_CA, ESTIBA_TLS_CERT and ESTIBA_TLS_KEY"
    )


class Connection:
    """One member at a time; the next when it fails."""

    def __init__(self, target: Target, *, tell: Callable[[str], None] = lambda _: None) -> None:
        """``tell`` is given a sentence when a call takes longer than a person expects."""
        self._target = target
        self._tell = tell
        self._pems = target.tls.read()
        self._credentials = self._pems.channel_credentials()
        self._index = 0
        self._channel: grpc.Channel | None = None
        self._stub: control_pb2_grpc.ControlStub | None = None

    def call(
        self,
        pick: "Callable[[control_pb2_grpc.ControlStub], grpc.UnaryUnaryMultiCallable[Q, R]]",
        request: Q,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> R:
        """Call whichever member answers.

        Raises:
            RefusedError: it said no.
            NoAnswerError: none answered within ``patience_s``.
        """
        deadline = time.monotonic() + patience_s
        told = False
        while True:
            try:
                return pick(self._connect())(request, timeout=timeout_s)
            except grpc.RpcError as error:
                last = self._judge(error)
            self.turn()
            if time.monotonic() > deadline:
                raise self._nobody(last)
            if self._index == 0:
                if not told:
                    self._tell(f"no member answers, trying for {patience_s:g} s: {last}")
                    told = True
                time.sleep(PAUSE_S)

    def stream(
        self,
        pick: "Callable[[control_pb2_grpc.ControlStub], grpc.UnaryStreamMultiCallable[Q, R]]",
        request: Q,
        *,
        began: Callable[[grpc.Call], None] = lambda _: None,
    ) -> Iterator[R]:
        """Yield what one member streams. ``began`` is given the call, which it may cancel.

        Raises:
            RefusedError: it said no.
            NoAnswerError: it broke off. The next call or stream goes to the next member.
        """
        try:
            call = pick(self._connect())(request)
            began(call)
            yield from call
        except grpc.RpcError as error:
            last = self._judge(error)
            self.turn()
            raise self._nobody(last) from None

    def clone(self) -> "Connection":
        """Return a connection of its own to the same cluster, for another thread."""
        return Connection(self._target)

    def turn(self) -> None:
        """Let go of this member; the next call goes to the next."""
        self.close()
        self._index = (self._index + 1) % len(self._target.servers)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._stub = None

    def _connect(self) -> control_pb2_grpc.ControlStub:
        """Return the stub of a member that is there: one that hangs is found out at once."""
        if self._stub is None:
            self._channel = grpc.secure_channel(
                self._target.servers[self._index], self._credentials, options=CHANNEL_OPTIONS
            )
            health = health_pb2_grpc.HealthStub(self._channel)
            try:
                health.Check(health_pb2.HealthCheckRequest(), timeout=ALIVE_TIMEOUT_S)
            except grpc.RpcError as error:
                if not isinstance(error, grpc.Call) or error.code() in RETRYABLE:
                    raise
                # Whatever else it says, it is there.
            self._stub = control_pb2_grpc.ControlStub(self._channel)
        return self._stub

    def _judge(self, error: grpc.RpcError) -> str:
        """Return what a failure that may pass says; raise one that is an answer."""
        if not isinstance(error, grpc.Call):
            raise error
        code, sentence = error.code(), error.details() or error.code().name.lower()
        if code not in RETRYABLE:
            raise RefusedError(code, sentence) from None
        return self._explain(sentence)

    def _explain(self, said: str) -> str:
        """Return why a member and we do not come together; raise what no other member mends."""
        from estiba.kit import tlsfaults

        files = self._target.tls
        ours = tlsfaults.our_fault(
            said, files=files, pems=self._pems, now_s=time.time(), remedy=RENEWAL
        )
        if ours:
            raise CliError(ours)
        address = self._target.servers[self._index]
        theirs = tlsfaults.their_fault(said, address=address, files=files)
        return theirs or tlsfaults.brief(said)

    def _nobody(self, last: str) -> NoAnswerError:
        where = ", ".join(self._target.servers)
        return NoAnswerError(f"no member of the cluster answers at {where}: {last}")
