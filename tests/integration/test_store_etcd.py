"""How etcd's failures reach us: as our errors, in time, and never as the wrong outcome."""

import asyncio
import datetime
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.authority import issuing
from controlplane.authority.issuing import Holder, OtherRole
from controlplane.errors import (
    OutcomeUnknownError,
    PreconditionError,
    StoreError,
    UnavailableError,
)
from controlplane.store.etcd import EtcdStore, check_version
from controlplane.store.protocol import Put, Unchanged
from estiba.kit import pem
from estiba.kit.livetls import LiveTls
from estiba.kit.tls import TlsFiles
from tests.support.etcd import Etcd, start_etcd
from tests.support.store import Proxy, proxy_to, put


@pytest.fixture
async def proxy(etcd: Etcd) -> AsyncIterator[Proxy]:
    async with proxy_to(etcd.port) as proxy:
        yield proxy


@pytest.mark.parametrize("version", ["3.4.22", "3.4.23", "3.5.3", "3.6.0", "4.0.1+git"])
def test_good_versions_of_etcd_are_taken(version: str) -> None:
    check_version("127.0.0.1:2379", version)


@pytest.mark.parametrize("version", ["3.4.21", "3.3.27", "3.5.0", "3.5.1", "3.5.2", "unknown"])
def test_bad_versions_of_etcd_are_refused_with_one_sentence(version: str) -> None:
    with pytest.raises(PreconditionError, match=r"etcd at 127\.0\.0\.1:2379 has version"):
        check_version("127.0.0.1:2379", version)


async def test_the_version_is_checked_at_the_start(etcd_store: EtcdStore) -> None:
    await etcd_store.start()


async def test_without_etcd_nothing_is_written_and_the_error_says_so(etcd: Etcd) -> None:
    async with proxy_to(etcd.port) as proxy:
        endpoint = proxy.endpoint
    store = EtcdStore([endpoint], tls=None)
    with pytest.raises(UnavailableError, match=endpoint):
        await store.start()
    with pytest.raises(UnavailableError):
        await store.get("/a")
    with pytest.raises(UnavailableError):
        await put(store, "/a")
    await store.close()


async def test_a_write_without_an_answer_has_an_unknown_outcome(
    etcd_store: EtcdStore, proxy: Proxy
) -> None:
    store = EtcdStore([proxy.endpoint], tls=None, timeout_s=0.5)
    await store.revision()
    proxy.freeze()
    began = time.monotonic()

    with pytest.raises(OutcomeUnknownError):
        await put(store, "/a")
    with pytest.raises(UnavailableError):
        await store.get("/a")

    assert time.monotonic() - began < 3
    await store.close()


async def test_a_connection_lost_during_a_write_leaves_its_outcome_unknown(
    etcd_store: EtcdStore, proxy: Proxy
) -> None:
    store = EtcdStore([proxy.endpoint], tls=None)
    await store.revision()
    proxy.freeze()
    writing = asyncio.create_task(put(store, "/a"))
    await asyncio.sleep(0.1)
    await proxy.cut()

    with pytest.raises(OutcomeUnknownError):
        await writing
    await store.close()


async def test_the_next_member_of_etcd_is_asked_when_one_cannot_be_reached(etcd: Etcd) -> None:
    async with proxy_to(etcd.port) as proxy:
        dead = proxy.endpoint
    store = EtcdStore([dead, etcd.endpoint], tls=None)
    await store.start()

    revision = await put(store, "/a", b"1")
    async with asyncio.timeout(5):
        batch = await anext(store.watch("/a", after=revision - 1))

    assert batch.revision == revision
    await store.close()


async def test_a_watch_moves_to_the_next_member_of_etcd(
    etcd: Etcd, etcd_store: EtcdStore, proxy: Proxy
) -> None:
    store = EtcdStore([proxy.endpoint, etcd.endpoint], tls=None)
    start = await put(etcd_store, "/w")
    watch = store.watch("/w", after=start)
    coming = asyncio.create_task(anext(watch))
    await put(etcd_store, "/w")
    assert (await coming).revision == start + 1

    coming = asyncio.create_task(anext(watch))
    await proxy.close()
    await put(etcd_store, "/w")

    assert (await coming).revision == start + 2
    await watch.aclose()
    await store.close()


async def test_each_operation_is_timed(etcd: Etcd) -> None:
    seen: list[tuple[str, float]] = []
    store = EtcdStore([etcd.endpoint], tls=None, observe=lambda *it: seen.append(it))
    await store.get("/a")
    await store.commit([Unchanged("/none", 0)], [Put("/a", b"")])

    assert [operation for operation, _ in seen] == ["get", "commit"]
    assert all(0 < seconds < 5 for _, seconds in seen)
    await store.close()


async def test_a_lease_is_renewed_from_a_thread(etcd_store: EtcdStore) -> None:
    client = etcd_store.lease_client()
    lease = await etcd_store.grant(7)
    assert await asyncio.to_thread(client.renew, lease, timeout_s=5) == 7.0
    await etcd_store.revoke(lease)
    assert await asyncio.to_thread(client.renew, lease, timeout_s=5) == 0.0
    client.close()


async def test_a_thread_renews_through_the_next_member_of_etcd(etcd: Etcd) -> None:
    async with proxy_to(etcd.port) as proxy:
        dead = proxy.endpoint
    store = EtcdStore([dead, etcd.endpoint], tls=None)
    client = store.lease_client()
    lease = await store.grant(7)

    with pytest.raises(UnavailableError):
        await asyncio.to_thread(client.renew, lease, timeout_s=5)
    assert await asyncio.to_thread(client.renew, lease, timeout_s=5) == 7.0

    client.close()
    await store.close()


async def test_etcd_speaks_tls_and_demands_a_certificate(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path)
    async with start_etcd(tmp_path / "etcd", tls=tls) as etcd:
        store = etcd.store()
        await store.start()
        lease = await store.grant(5)
        client = store.lease_client()
        assert await asyncio.to_thread(client.renew, lease, timeout_s=5) == 5.0
        client.close()
        await store.close()

        stranger = EtcdStore([etcd.endpoint], tls=None, timeout_s=1.0)
        with pytest.raises(StoreError):
            await stranger.get("/a")
        await stranger.close()


async def test_a_new_certificate_is_shown_at_the_next_connection(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path)
    async with start_etcd(tmp_path / "etcd", tls=tls) as etcd:
        good = tls.cert.read_bytes()
        stranger = issuing.make_authority("somebody", datetime.datetime.now(datetime.UTC))
        tls.cert.write_bytes(holder_pem(stranger, OtherRole.ETCD_CLIENT))
        live = LiveTls(tls)
        store = EtcdStore([etcd.endpoint], tls=live, timeout_s=2.0)
        client = store.lease_client()
        with pytest.raises(StoreError):
            await store.revision()
        with pytest.raises(StoreError):
            await asyncio.to_thread(client.renew, 1, timeout_s=2)

        pem.replace_file(tls.cert, good)
        assert live.refresh()

        lease = await store.grant(5)
        assert await asyncio.to_thread(client.renew, lease, timeout_s=5) == 5.0
        client.close()
        await store.close()


def make_certificates(folder: Path) -> TlsFiles:
    """Make an authority, a server's certificate for loopback, and a client's."""
    authority = issuing.make_authority("etcd", datetime.datetime.now(datetime.UTC))
    (folder / "ca.pem").write_bytes(authority.pem)
    server = holder_pem(authority, OtherRole.ETCD)
    for name in ("server.crt", "server.key"):
        (folder / name).write_bytes(server)
    client = folder / "client.pem"
    client.write_bytes(holder_pem(authority, OtherRole.ETCD_CLIENT))
    return TlsFiles(folder / "ca.pem", client, client)


def holder_pem(authority: issuing.Authority, role: OtherRole) -> bytes:
    names = ("127.0.0.1",) if role is OtherRole.ETCD else ()
    now = datetime.datetime.now(datetime.UTC)
    return issuing.issue_with_key(authority, Holder(role, "etcd", names=names), now)
