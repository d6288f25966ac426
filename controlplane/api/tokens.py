"""What users may do with the tokens that admit machines as nodes.

Of a token's secret only a digest is stored, and not even that is told. Tokens are not in the
view, and no watch shows them: they are read from the store. Each hangs on a lease, with which
the store forgets it some time after it has expired.
"""

import logging
import math

from controlplane.api.access import caller
from controlplane.authority import admission
from controlplane.authority.issuing import Authority
from controlplane.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NoAuthorityError,
    NotFoundError,
)
from controlplane.store import codec, keys
from controlplane.store.cache import Cache
from controlplane.store.protocol import Entry, Put, Store, Unchanged
from controlplane.validate import Fault
from estiba import wire
from estiba.kit import jointoken
from estiba.kit.clock import Clock
from estiba.kit.jointoken import JoinToken
from estiba.v1 import control_pb2 as control
from estiba.v1 import types_pb2 as v1

log = logging.getLogger(__name__)

# How long an expired token is still listed, so that whoever wonders sees that it has expired.
KEPT_S = 24 * 3600


class Tokens:
    def __init__(
        self,
        store: Store,
        cache: Cache,
        clock: Clock,
        *,
        authority: Authority | None,
        member_id: str,
    ) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock
        self._authority = authority
        self._member_id = member_id

    async def create(
        self, request: control.CreateJoinTokenRequest
    ) -> control.CreateJoinTokenResponse:
        if self._authority is None:
            raise NoAuthorityError(self._member_id)
        faults = _faults(request)
        if faults:
            raise InvalidError(faults)
        token = await self._stored(request) or await self._store_new(request)
        members = sorted(self._cache.members.values(), key=lambda member: member.id)
        return control.CreateJoinTokenResponse(
            token=token,
            text=str(JoinToken(self._authority.digest, request.id, request.secret)),
            join_addresses=[each.join_address for each in members if each.join_address],
        )

    async def list_all(self) -> control.ListJoinTokensResponse:
        found: list[v1.JoinToken] = []
        start = keys.JOIN_TOKENS
        while start:
            page = await self._store.list(keys.JOIN_TOKENS, start=start)
            found += map(_told, page.entries)
            start = page.next_key
        found.sort(key=lambda token: (wire.seconds(token.metadata.created_at), token.metadata.id))
        return control.ListJoinTokensResponse(tokens=found)

    async def remove(
        self, request: control.RemoveJoinTokenRequest
    ) -> control.RemoveJoinTokenResponse:
        entry = await self._store.get(keys.join_token(request.id))
        if entry is None:
            raise NotFoundError(f"there is no join token {request.id}")
        # The token goes with it, and a node that is just being admitted is not.
        await self._store.revoke(entry.lease)
        log.info("%s removed join token %s", caller(), request.id)
        return control.RemoveJoinTokenResponse(id=request.id)

    async def _stored(self, request: control.CreateJoinTokenRequest) -> v1.JoinToken | None:
        """Return the token if this request has made it before.

        Raises:
            AlreadyExistsError: it is another's.
        """
        entry = await self._store.get(keys.join_token(request.id))
        if entry is None:
            return None
        token = v1.JoinToken.FromString(entry.value)
        if token.secret_sha256 != admission.secret_digest(request.secret):
            raise AlreadyExistsError(f"join token {request.id} already exists")
        return _told(entry)

    async def _store_new(self, request: control.CreateJoinTokenRequest) -> v1.JoinToken:
        life_s = _life_s(request)
        now_s = self._clock.now()
        now = wire.timestamp(now_s)
        token = v1.JoinToken(
            metadata=v1.Metadata(
                id=request.id,
                generation=1,
                created_at=now,
                changed_at=now,
                changed_by=str(caller()),
            ),
            expires_at=wire.timestamp(now_s + life_s),
            uses=request.uses or admission.USES,
            secret_sha256=admission.secret_digest(request.secret),
        )
        key = keys.join_token(request.id)
        lease = await self._store.grant(math.ceil(life_s) + KEPT_S)
        try:
            token.metadata.revision = await self._store.commit(
                [Unchanged(key, 0)], [Put(key, codec.encode(token), lease)]
            )
        except ConflictError:
            await self._store.revoke(lease)
            stored = await self._stored(request)
            if stored is None:
                raise
            return stored
        ends = token.expires_at.ToJsonString()
        log.info("%s made join token %s: %d uses until %s", caller(), request.id, token.uses, ends)
        token.ClearField("secret_sha256")
        return token


def _told(entry: Entry) -> v1.JoinToken:
    token = v1.JoinToken.FromString(entry.value)
    token.ClearField("secret_sha256")
    token.metadata.revision = entry.mod_revision
    return token


def _life_s(request: control.CreateJoinTokenRequest) -> float:
    return wire.duration_s(request.life) if request.HasField("life") else admission.LIFE_S


def _faults(request: control.CreateJoinTokenRequest) -> list[Fault]:
    faults: list[Fault] = []
    if not jointoken.is_id(request.id):
        sentence = f"must be {jointoken.ID_LENGTH} characters of a to z and 2 to 7"
        faults.append(("id", sentence))
    if not jointoken.is_secret(request.secret):
        # What it is instead is not repeated.
        sentence = f"must be {jointoken.SECRET_LENGTH} characters of a to z and 2 to 7"
        faults.append(("secret", sentence))
    if not 0 < _life_s(request) <= admission.MOST_LIFE_S:
        faults.append(("life", "must be more than 0 and at most 30 days"))
    if request.uses > admission.MOST_USES:
        faults.append(("uses", f"{request.uses}, {admission.MOST_USES} at most"))
    return faults
