"""The kit's tools: work queue, back-off, certificates' identities."""

import asyncio
import gc
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from estiba.kit.backoff import Backoff
from estiba.kit.seldom import Seldom
from estiba.kit.threads import whole
from estiba.kit.tls import Identity, Role, identity_of
from estiba.kit.workqueue import WorkQueue


async def test_a_key_added_while_waiting_is_merged() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")

    async with queue.take() as key:
        assert key == "a"
    assert len(queue) == 0


async def test_a_key_added_while_taken_comes_back_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    async with queue.take():
        queue.add("a")
        queue.add("a")

    async with queue.take() as key:
        assert key == "a"
    assert len(queue) == 0


async def test_a_taken_key_is_never_in_two_hands() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    async with queue.take():
        queue.add("a")
        second = asyncio.ensure_future(queue.take().__aenter__())
        await asyncio.sleep(0)
        assert not second.done()
    assert await second == "a"


async def test_take_all_takes_what_waits_and_gives_back_what_came_meanwhile() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "a"):
        queue.add(key)
    async with queue.take_all() as keys:
        assert sorted(keys) == ["a", "b"]
        queue.add("b")

    async with queue.take_all() as keys:
        assert keys == ["b"]


@given(st.integers(1, 60), st.floats(0, 0.999))
def test_back_off_grows_to_its_most_and_never_beyond(failures: int, chance: float) -> None:
    backoff = Backoff(first_s=0.1, most_s=60.0, random=lambda: chance)

    delays = [backoff.next_s() for _ in range(failures)]

    assert delays == sorted(delays)
    assert all(0.05 <= delay <= 60.0 for delay in delays)
    backoff.reset()
    assert backoff.next_s() == delays[0]


def certificate(*attributes: tuple[x509.ObjectIdentifier, str]) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM)


def test_a_certificate_says_who_its_holder_is() -> None:
    pem = certificate((NameOID.COMMON_NAME, "n1"), (NameOID.ORGANIZATION_NAME, "estiba:node"))

    assert identity_of(pem) == Identity(Role.NODE, "n1")
    assert str(identity_of(pem)) == "node:n1"
    assert not identity_of(pem).hostname


def test_a_nodes_certificate_may_bind_one_host_name() -> None:
    subject = [(NameOID.COMMON_NAME, "n1"), (NameOID.ORGANIZATION_NAME, "estiba:node")]
    unit = (NameOID.ORGANIZATIONAL_UNIT_NAME, "host-1")

    assert identity_of(certificate(*subject, unit)).hostname == "host-1"
    with pytest.raises(ValueError, match="at most one OU"):
        identity_of(certificate(*subject, unit, unit))


@pytest.mark.parametrize(
    "attributes",
    [
        [(NameOID.COMMON_NAME, "n1")],
        [(NameOID.COMMON_NAME, "n1"), (NameOID.ORGANIZATION_NAME, "somebody")],
        [
            (NameOID.COMMON_NAME, "n1"),
            (NameOID.ORGANIZATION_NAME, "estiba:node"),
            (NameOID.ORGANIZATION_NAME, "estiba:user"),
        ],
    ],
)
def test_a_certificate_without_exactly_one_role_of_ours_is_nobody(
    attributes: list[tuple[x509.ObjectIdentifier, str]],
) -> None:
    with pytest.raises(ValueError, match=r"estiba|subject|somebody"):
        identity_of(certificate(*attributes))


def test_what_lasts_is_said_at_once_and_then_seldom() -> None:
    failing = Seldom(every_s=10)
    assert [now_s for now_s in range(100, 125) if failing.due(now_s)] == [100, 110, 120]
    failing.reset()
    assert failing.due(125)


async def test_work_on_a_thread_ends_before_its_cancelled_caller_and_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, hurry = threading.Event(), threading.Event()
    ended = []

    def work() -> None:
        begun.set()
        hurry.wait()
        ended.append(True)
        raise OSError("too late")

    caller = asyncio.create_task(whole(work, hurry=hurry.set))
    await asyncio.to_thread(begun.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert ended
    gc.collect()
    assert "never retrieved" not in caplog.text
