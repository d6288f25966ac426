"""Renew this node's certificate once half of its life is over, with a new key each time.

The file has certificate and key in one, so a renewal is done or not done. Connections go on
with what they began with; whatever is opened afterwards shows the new certificate.
"""

import logging
import ssl
from collections.abc import Callable, Sequence

import grpc

from agent.config import Config
from agent.connecting import Connector
from agent.errors import SessionError
from agent.identity import check_holder
from estiba.kit import pem, tlsfaults
from estiba.kit.backoff import Backoff
from estiba.kit.clock import Clock
from estiba.kit.livetls import LiveTls
from estiba.kit.pem import Life
from estiba.kit.threads import whole
from estiba.kit.tls import Pems, Role, identity_of
from estiba.v1 import certificates_pb2 as pb
from estiba.v1.certificates_pb2_grpc import CertificatesStub

log = logging.getLogger(__name__)

# A clock may be set, and the file replaced by somebody else: look at both again.
LOOK_S = 3600.0
# Of a life: so that machines which joined together do not all renew at once.
SPREAD = 0.01
CALL_WITHIN_S = 10.0
FIRST_RETRY_S = 5.0
MOST_RETRY_S = 3600.0


def wait_s(life: Life, now_s: float, *, spread: float) -> float:
    """Return how long to wait before looking again; 0: renew now.

    Args:
        spread: this node's own, from 0 to 1: how far beyond the middle of a life it renews.
    """
    whole_s = life.ends_s - life.begins_s
    due_s = life.begins_s + whole_s * (0.5 + SPREAD * spread)
    return min(max(due_s - now_s, 0.0), LOOK_S)


class Renewal:
    """`run` works until cancelled; a renewal that fails is tried again, and stops nothing."""

    def __init__(
        self,
        config: Config,
        tls: LiveTls,
        *,
        members: Callable[[], Sequence[str]],
        connector: Connector,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._config = config
        self._tls = tls
        self._members = members
        self._connector = connector
        self._clock = clock
        self._random = random
        self._spread = random()
        self._backoff = Backoff(first_s=FIRST_RETRY_S, most_s=MOST_RETRY_S, random=random)

    async def run(self) -> None:
        if self._config.tls.cert != self._config.tls.key:
            log.warning(
                "tls.cert and tls.key are two files, which cannot be replaced as one: this agent"
                " does not renew its certificate"
            )
            return
        while True:
            delay_s = self._wait_s()
            if delay_s:
                self._backoff.reset()
                await self._clock.sleep(delay_s)
                continue
            try:
                await self._renew()
            except SessionError as fault:
                log.warning("the certificate is not renewed yet: %s", fault)
                await self._clock.sleep(self._backoff.next_s())
            else:
                if not self._wait_s():
                    log.warning(
                        "the new certificate is past half of its life already: this machine's"
                        " clock and the cluster's differ, set them right"
                    )
                    await self._clock.sleep(self._backoff.next_s())

    def _wait_s(self) -> float:
        return wait_s(self._tls.life, self._clock.now(), spread=self._spread)

    async def _renew(self) -> None:
        """Have a new certificate from the first member that issues one.

        Raises:
            SessionError: none does; says why the last one did not.
        """
        holder = identity_of(self._tls.pems.cert)
        key, request = pem.make_key_and_request(
            name=holder.name, role=Role.NODE, hostname=holder.hostname
        )
        members = list(self._members())
        first = int(self._random() * len(members))
        reason = "there is no member"
        for address in members[first:] + members[:first]:
            try:
                answer = await self._ask(address, pb.RenewRequest(request_pem=request))
                await self._take(answer.certificate_pem, key)
            except (SessionError, ValueError, OSError) as fault:
                reason = f"{address}: {fault}"
            else:
                days = self._tls.life.remaining_s(self._clock.now()) / 86400
                log.info("%s issued a new certificate, for %.1f days", address, days)
                return
        raise SessionError(reason)

    async def _ask(self, address: str, request: pb.RenewRequest) -> pb.RenewResponse:
        async with self._connector.connected(address) as channel:
            try:
                return await CertificatesStub(channel).Renew(request, timeout=CALL_WITHIN_S)
            except grpc.aio.AioRpcError as fault:
                raise SessionError(f"{fault.code().name}: {fault.details()}") from fault

    async def _take(self, certificate_pem: bytes, key: bytes) -> None:
        """Write a new certificate and its key, and show it from now on.

        Raises:
            ValueError: it is not for us, our authority or this key; the file is as it was.
            OSError: the disk refuses.
        """
        check_holder(self._config, certificate_pem)
        text = certificate_pem + key
        if pem.life_of(text).ends_s < self._tls.life.ends_s:
            raise ValueError("it issued a certificate that ends before ours: is its clock right?")
        pems = Pems(ca=self._tls.pems.ca, cert=text, key=text)
        if not tlsfaults.is_signed(pems):
            raise ValueError("it issued a certificate of another authority")
        try:
            pems.server_context()
        except ssl.SSLError as fault:
            raise ValueError(f"it issued a certificate for another key: {fault}") from fault
        await whole(lambda: pem.replace_file(self._config.tls.cert, text))
        self._tls.refresh()
