"""Renews the certificate of whoever calls, for as long as its holder belongs to the cluster."""

import datetime
import logging
from typing import Any

from grpc import aio

from controlplane.api import node_register
from controlplane.api.access import caller
from controlplane.authority import issuing, requests
from controlplane.authority.issuing import Authority, Holder
from controlplane.errors import DeniedError, InvalidError, NoAuthorityError
from controlplane.store.cache import Cache
from estiba.kit.clock import Clock
from estiba.v1 import certificates_pb2 as pb
from estiba.v1 import certificates_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

Context = aio.ServicerContext[Any, Any]


class CertificatesServicer(pb_grpc.CertificatesServicer):
    """The holder is the one that the caller's certificate names, whatever the request says."""

    def __init__(
        self, cache: Cache, clock: Clock, *, authority: Authority | None, member_id: str
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._authority = authority
        self._member_id = member_id

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        if self._authority is None:
            raise NoAuthorityError(self._member_id)
        holder = caller()
        try:
            asked = requests.read_request(request.request_pem)
        except ValueError as fault:
            raise InvalidError([("", str(fault))]) from fault
        try:
            requests.check_renewal(asked, holder)
        except ValueError as fault:
            raise DeniedError(str(fault)) from fault
        # Whoever has been removed before the call began is known to be.
        await self._cache.catch_up()
        if holder.name in self._cache.removed_nodes:
            raise node_register.removed(holder.name)
        now = datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)
        certificate = issuing.issue(
            self._authority,
            Holder(holder.role, holder.name, holder.hostname),
            asked.public_key,
            now,
        )
        log.info("%s has a new certificate", holder)
        return pb.RenewResponse(certificate_pem=certificate, authority_pem=self._authority.pem)
