"""Admission when the store does not answer: nothing is left half made, and a second try gets in."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from controlplane.api.access import CALLER
from controlplane.api.joining import Admitted, Joining
from controlplane.api.tokens import KEPT_S, Tokens
from controlplane.authority import issuing
from controlplane.authority.admission import Outcome, Refusal
from controlplane.errors import (
    ConflictError,
    NoAuthorityError,
    OutcomeUnknownError,
    UnavailableError,
)
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.memory import MemoryStore
from controlplane.store.protocol import Condition, Entry, Write
from estiba.kit import pem
from estiba.kit.clock import LoopClock
from estiba.kit.tls import Identity, Role
from estiba.v1 import certificates_pb2 as certificates
from estiba.v1 import control_pb2 as control
from estiba.v1 import types_pb2 as v1
from tests.support import virtual_time

AUTHORITY = issuing.make_authority("estiba test", datetime.now(UTC))
TOKEN_ID, SECRET = "a" * 8, "b" * 26

Fate = Literal["", "unavailable", "never", "at once", "late"]


class FailingStore(MemoryStore):
    """``read_fails_at`` counts reads down; ``fate`` is what happens to the next write."""

    def __init__(self) -> None:
        super().__init__()
        self.fate: Fate = ""
        self.reads_left = -1
        self.late: list[tuple[Sequence[Condition], Sequence[Write]]] = []

    async def get(self, key: str) -> Entry | None:
        self.reads_left -= 1
        if self.reads_left == 0:
            raise UnavailableError("the store does not answer")
        return await super().get(key)

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        fate, self.fate = self.fate, ""
        if fate == "unavailable":
            raise UnavailableError("the store does not answer")
        if fate == "late":
            self.late.append((conditions, writes))
        if fate == "at once":
            await super().commit(conditions, writes)
        if fate:
            raise OutcomeUnknownError("the store did not answer a write")
        return await super().commit(conditions, writes)

    async def happen(self) -> None:
        """Carry out the writes that are late."""
        for conditions, writes in self.late:
            with suppress(ConflictError):
                await super().commit(conditions, writes)


def simulate(story: Coroutine[Any, Any, None]) -> None:
    CALLER.set(Identity(Role.USER, "test"))
    virtual_time.run(story)


def tokens_of(store: MemoryStore, authority: issuing.Authority | None = AUTHORITY) -> Tokens:
    clock = LoopClock()
    cache = Cache(store, clock=clock)
    return Tokens(store, cache, clock, authority=authority, member_id="m1")


def joining_of(store: MemoryStore) -> Joining:
    clock = LoopClock()
    return Joining(store, Cache(store, clock=clock), clock, AUTHORITY, address="10.0.0.1:7443")


def token_request(*, uses: int = 1) -> control.CreateJoinTokenRequest:
    return control.CreateJoinTokenRequest(id=TOKEN_ID, secret=SECRET, uses=uses)


def join_request(hostname: str = "m1") -> certificates.JoinRequest:
    _, request_pem = pem.make_key_and_request(name="", role=Role.NODE)
    return certificates.JoinRequest(
        token_id=TOKEN_ID, token_secret=SECRET, request_pem=request_pem, hostname=hostname
    )


async def admitted(store: MemoryStore) -> list[str]:
    entry = await store.get(keys.join_token(TOKEN_ID))
    assert entry is not None
    return list(v1.JoinToken.FromString(entry.value).admitted)


async def nodes(store: MemoryStore) -> list[str]:
    page = await store.list(keys.NODES)
    names = await store.list(keys.NODE_NAMES)
    found = [v1.Node.FromString(entry.value).metadata for entry in page.entries]
    assert {each.name: each.id for each in found} == {
        entry.key.removeprefix(keys.NODE_NAMES): entry.value.decode() for entry in names.entries
    }
    return [each.id for each in found]


@pytest.mark.parametrize("fate", ["unavailable", "never", "at once", "late"])
def test_a_write_without_an_answer_admits_once_or_not_at_all(fate: Fate) -> None:
    async def story() -> None:
        store = FailingStore()
        await tokens_of(store).create(token_request())
        joining, request = joining_of(store), join_request()

        store.fate = fate
        first = await joining.join(request)
        assert isinstance(first, Refusal)
        assert first.outcome is Outcome.UNAVAILABLE
        assert await admitted(store) == await nodes(store)
        assert len(await admitted(store)) == (fate == "at once")

        second = await joining.join(request)
        await store.happen()
        assert isinstance(second, Admitted)
        assert await admitted(store) == await nodes(store) == [second.response.node_id]

    simulate(story())


@pytest.mark.parametrize("read", range(1, 5))
def test_a_read_without_an_answer_admits_nobody(read: int) -> None:
    async def story() -> None:
        store = FailingStore()
        await tokens_of(store).create(token_request())
        joining, request = joining_of(store), join_request()

        store.reads_left = read
        first = await joining.join(request)
        assert isinstance(first, Refusal)
        assert first.outcome is Outcome.UNAVAILABLE
        assert await admitted(store) == await nodes(store) == []
        assert isinstance(await joining.join(request), Admitted)

    simulate(story())


def test_a_write_that_comes_late_takes_no_use_from_another() -> None:
    async def story() -> None:
        store = FailingStore()
        await tokens_of(store).create(token_request(uses=1))
        joining = joining_of(store)

        store.fate = "late"
        assert isinstance(await joining.join(join_request("slow")), Refusal)
        winner = await joining.join(join_request("fast"))
        await store.happen()

        assert isinstance(winner, Admitted)
        assert await admitted(store) == await nodes(store) == [winner.response.node_id]

    simulate(story())


def test_machines_that_join_at_one_time_all_get_in() -> None:
    async def story() -> None:
        store = MemoryStore()
        await tokens_of(store).create(token_request(uses=50))
        joining = joining_of(store)
        results = await asyncio.gather(*(joining.join(join_request("same")) for _ in range(40)))

        assert all(isinstance(each, Admitted) for each in results)
        assert sorted(await admitted(store)) == sorted(await nodes(store))
        assert len(await nodes(store)) == 40

    simulate(story())


def test_a_token_is_forgotten_a_day_after_it_has_expired() -> None:
    async def story() -> None:
        store = MemoryStore()
        tokens = tokens_of(store)
        request = token_request(uses=5)
        request.life.FromSeconds(60)
        await tokens.create(request)
        joining = joining_of(store)
        assert isinstance(await joining.join(join_request("early")), Admitted)

        await asyncio.sleep(61)
        late = await joining.join(join_request("late"))
        assert isinstance(late, Refusal)
        assert late.outcome is Outcome.EXPIRED
        # It is still there to be looked at; that it was used did not make it stay for ever.
        assert len((await tokens.list_all()).tokens) == 1
        await asyncio.sleep(KEPT_S)
        assert not (await tokens.list_all()).tokens
        late = await joining.join(join_request("later"))
        assert isinstance(late, Refusal)
        assert late.outcome is Outcome.UNKNOWN

    simulate(story())


def test_a_token_that_is_removed_while_a_machine_joins_admits_it_or_does_not() -> None:
    async def story() -> None:
        store = MemoryStore()
        tokens = tokens_of(store)
        await tokens.create(token_request(uses=5))
        joining = joining_of(store)
        remove = tokens.remove(control.RemoveJoinTokenRequest(id=TOKEN_ID))
        results = await asyncio.gather(
            *(joining.join(join_request(f"m{number}")) for number in range(4)), remove
        )

        joined = [each.response.node_id for each in results if isinstance(each, Admitted)]
        assert sorted(await nodes(store)) == sorted(joined)
        assert await store.get(keys.join_token(TOKEN_ID)) is None

    simulate(story())


def test_a_member_without_the_authority_makes_no_tokens_and_says_who_does() -> None:
    async def story() -> None:
        tokens = tokens_of(MemoryStore(), authority=None)
        with pytest.raises(NoAuthorityError, match="member m1 holds no authority: ask another"):
            await tokens.create(token_request())
        assert not (await tokens.list_all()).tokens

    simulate(story())


def test_a_member_between_two_leases_still_says_where_members_are() -> None:
    async def story() -> None:
        store = FailingStore()
        await tokens_of(store).create(token_request())

        admission = await joining_of(store).join(join_request())

        assert isinstance(admission, Admitted)
        assert list(admission.response.member_addresses) == ["10.0.0.1:7443"]

    simulate(story())
