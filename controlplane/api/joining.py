"""Admits machines as nodes: one transaction, which counts a token's use and makes the node.

`controlplane.authority` has the rules; `controlplane.web.join` listens.
"""

import asyncio
import datetime
import logging
from contextlib import nullcontext
from dataclasses import dataclass

from controlplane.api import node_register
from controlplane.authority import admission, issuing, requests
from controlplane.authority.admission import Outcome, Refusal
from controlplane.authority.issuing import Authority, Holder
from controlplane.authority.requests import Request
from controlplane.errors import (
    ConflictError,
    LeaseEndedError,
    OutcomeUnknownError,
    UnavailableError,
)
from controlplane.store import codec, keys
from controlplane.store.cache import Cache
from controlplane.store.protocol import Condition, Put, Store, Unchanged, Write
from estiba.kit import jointoken
from estiba.kit.clock import Clock
from estiba.kit.tls import Role
from estiba.v1 import certificates_pb2 as pb
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

# Of members that admit with one token at one time, one gets through at each attempt of all.
ATTEMPTS = 20

NO_STORE = Refusal(
    Outcome.UNAVAILABLE, "the cluster's store does not answer: try again, with the same key"
)
TOO_MANY = Refusal(Outcome.UNAVAILABLE, "many machines are joining at this moment: try again")


@dataclass(frozen=True, slots=True)
class Admitted:
    outcome: Outcome
    response: pb.JoinResponse


@dataclass(frozen=True, slots=True)
class _Stored:
    token: v1.JoinToken
    mod_revision: int
    lease: int


class Joining:
    def __init__(
        self, store: Store, cache: Cache, clock: Clock, authority: Authority, *, address: str
    ) -> None:
        """``address`` is where agents reach this member."""
        self._store = store
        self._cache = cache
        self._clock = clock
        self._authority = authority
        self._address = address
        # Whoever has been in the way of another with the same token waits for its turn.
        self._turn = asyncio.Lock()

    @property
    def authority_pem(self) -> bytes:
        return self._authority.pem

    async def join(self, request: pb.JoinRequest) -> Admitted | Refusal:
        """Admit a machine and sign its certificate, or say why not.

        Nothing is stored for a machine that is refused. Sent again with the same key, a
        request admits the same node, which counts once.
        """
        try:
            requests.check_hostname(request.hostname)
            asked = requests.read_request(request.request_pem)
            node_id = requests.node_id(asked, request.former_certificate_pem, self._authority)
        except ValueError as fault:
            return Refusal(Outcome.INVALID, str(fault))
        for attempt in range(ATTEMPTS):
            try:
                async with self._turn if attempt else nullcontext():
                    result = await self._admit(node_id, request)
            except (ConflictError, LeaseEndedError) as changed:
                log.info("node %s will be judged again: %s", node_id, changed)
            except (UnavailableError, OutcomeUnknownError) as fault:
                log.warning("node %s is not admitted: %s", node_id, fault)
                return NO_STORE
            else:
                if isinstance(result, Refusal):
                    return result
                return Admitted(result, self._welcome(node_id, asked, request.hostname))
        return TOO_MANY

    async def _admit(self, node_id: str, request: pb.JoinRequest) -> Outcome | Refusal:
        """Judge what is stored, and store the admission if that has not changed.

        Raises:
            ConflictError: it has changed; nothing was written.
            StoreError: the store does not answer.
        """
        stored = await self._token(request.token_id)
        removed = await self._store.get(keys.node_removed(node_id))
        refusal = admission.judge(
            stored.token,
            request.token_secret,
            node_id,
            removed=removed is not None,
            now_s=self._clock.now(),
        )
        if refusal is not None:
            return refusal
        key = keys.join_token(request.token_id)
        conditions: list[Condition] = [
            Unchanged(key, stored.mod_revision),
            Unchanged(keys.node_removed(node_id), 0),
        ]
        after = admission.admit(stored.token, node_id)
        writes: list[Write] = [Put(key, codec.encode(after), stored.lease)]
        if await self._store.get(keys.node(node_id)) is None:
            name = await self._free_name(node_id, request.hostname)
            node = node_register.new_node(
                node_id, name, now_s=self._clock.now(), by=f"join-token:{request.token_id}"
            )
            made = node_register.creation(node)
            conditions += made.conditions
            writes += made.writes
        await self._store.commit(conditions, writes)
        return Outcome.AGAIN if node_id in stored.token.admitted else Outcome.ADMITTED

    async def _token(self, id_: str) -> _Stored:
        """Read a token; one that does not exist has no secret and admits nobody."""
        entry = await self._store.get(keys.join_token(id_)) if jointoken.is_id(id_) else None
        if entry is None:
            return _Stored(v1.JoinToken(), 0, 0)
        return _Stored(v1.JoinToken.FromString(entry.value), entry.mod_revision, entry.lease)

    async def _free_name(self, node_id: str, hostname: str) -> str:
        """Return the first name that no other node has; the transaction checks it again."""
        for name in node_register.names(node_id, hostname):
            if await self._store.get(keys.node_name(name)) is None:
                return name
        return node_id

    def _welcome(self, node_id: str, asked: Request, hostname: str) -> pb.JoinResponse:
        now = datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)
        holder = Holder(Role.NODE, node_id, hostname)
        cluster = self._cache.cluster
        # Between two leases a member is not registered, and is there all the same.
        members = {each.address for each in self._cache.members.values()}
        return pb.JoinResponse(
            node_id=node_id,
            certificate_pem=issuing.issue(self._authority, holder, asked.public_key, now),
            authority_pem=self._authority.pem,
            cluster_name=cluster.name if cluster is not None else "",
            member_addresses=sorted(members | {self._address}),
        )
