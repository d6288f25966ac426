"""The store in etcd: the only file that speaks to it.

Stubs and messages are etcd3aio's; channels, deadlines, errors and the watch are ours
(README.md says why). What an error means for a write is decided here: either nothing
was written, or the outcome is unknown.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from etcd3aio import _protobuf as pb

from controlplane.errors import (
    CompactedError,
    LeaseEndedError,
    OutcomeUnknownError,
    PreconditionError,
    StoreError,
    UnavailableError,
)
from controlplane.store import transaction
from controlplane.store.codec import prefix_end
from controlplane.store.fragments import Assembly
from controlplane.store.protocol import (
    Batch,
    Condition,
    Delete,
    Entry,
    Event,
    Fence,
    HasValue,
    Page,
    Put,
    Unchanged,
    Write,
)
from estiba.kit.tls import ChannelTls

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
OLDEST_VERSION = (3, 4, 22)
CORRUPTING_VERSIONS = ((3, 5, 0), (3, 5, 1), (3, 5, 2))

# A member of etcd that has no leader refuses at once, instead of keeping us waiting or serving
# a watch that will never see anything again.
_REQUIRE_LEADER = (("hasleader", "true"),)

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # etcd takes pings more often than every 5 s for an attack, and closes the connection.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A lease is renewed on a connection of its own, never behind a list of 64 MiB.
    ("grpc.use_local_subchannel_pool", 1),
)

# What gRPC and etcd say when a request was certainly not carried out.
_NEVER_SENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "etcdserver: no leader",
)

_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"

Observe = Callable[[str, float], None]


class _Connection:
    """One member of etcd: a channel, and the stubs on it."""

    def __init__(self, endpoint: str, tls: ChannelTls | None) -> None:
        self.generation = 0 if tls is None else tls.generation
        if tls is None:
            self.channel = grpc.aio.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(
                endpoint, tls.channel_credentials(), options=_CHANNEL_OPTIONS
            )
        self.kv = pb.KVStub(self.channel)
        self.leases = pb.LeaseStub(self.channel)
        self.watches = pb.WatchStub(self.channel)
        self.maintenance = pb.MaintenanceStub(self.channel)
        # A stream in etcd's API. With one request and one answer it is the same on the wire.
        self.keep_alive = self.channel.unary_unary(
            _KEEP_ALIVE,
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )


# etcd3aio's stubs are not typed.
_Method = Callable[[_Connection], Any]


class EtcdStore:
    """Keeps `controlplane.store.protocol.Store`. Belongs to one event loop.

    Args:
        endpoints: HOST:PORT of the members of etcd; when one fails, the next is asked.
        tls: None speaks clear text, which only tests do.
        timeout_s: how long one operation may take, over all endpoints.
        observe: is told each operation's name and seconds.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ChannelTls | None,
        timeout_s: float = 5.0,
        observe: Observe = lambda operation, seconds: None,
    ) -> None:
        if not endpoints:
            raise ValueError("no etcd endpoint given")
        self._endpoints = tuple(endpoints)
        self._tls = tls
        self._timeout_s = timeout_s
        self._observe = observe
        self._connections = [_Connection(endpoint, tls) for endpoint in endpoints]
        # Those with a former certificate. What they have begun goes on, so they stay open.
        self._former: list[_Connection] = []
        self._current = 0

    async def start(self) -> None:
        """Check the version of every member of etcd that answers.

        Raises:
            PreconditionError: a version that may lose or corrupt data; the message names it.
            UnavailableError: none answers.
        """
        answers = await asyncio.gather(*(self._version(i) for i in range(len(self._connections))))
        unreachable = [answer for answer in answers if isinstance(answer, UnavailableError)]
        if len(unreachable) == len(answers):
            raise unreachable[0]
        for endpoint, version in zip(self._endpoints, answers, strict=True):
            if isinstance(version, str):
                check_version(endpoint, version)

    async def close(self) -> None:
        """Close the connections. End first whoever uses them: gRPC has no error for it."""
        for connection in (*self._connections, *self._former):
            await connection.channel.close()

    async def get(self, key: str) -> Entry | None:
        request = pb.RangeRequest(key=key.encode())
        answer = await self._read("get", lambda to: to.kv.Range, request)
        return _entry(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str, *, start: str = "", limit: int = 1000, at: int = 0) -> Page:
        request = pb.RangeRequest(
            key=max(start, prefix).encode(),
            range_end=prefix_end(prefix),
            limit=limit,
            revision=at,
        )
        answer = await self._read("list", lambda to: to.kv.Range, request)
        entries = tuple(_entry(kv) for kv in answer.kvs)
        next_key = entries[-1].key + "\x00" if answer.more else ""
        return Page(entries, at or answer.header.revision, next_key)

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        transaction.check(conditions, writes)
        request = pb.TxnRequest(
            compare=[_compare(condition) for condition in conditions],
            success=[_request(write) for write in writes],
            failure=[_look_up(condition.key) for condition in conditions],
        )
        answer = await self._write("commit", lambda to: to.kv.Txn, request)
        if answer.succeeded:
            return int(answer.header.revision)
        found = [_entry(kv) for look in answer.responses for kv in look.response_range.kvs]
        refused = transaction.refusal(conditions, {entry.key: entry for entry in found}.get)
        if refused is None:
            raise StoreError(f"etcd refused a transaction whose conditions hold: {conditions!r}")
        raise refused

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        assembly = Assembly(after=after)
        delay_s = 0.0
        while True:
            try:
                async with aclosing(self._stream(prefix, assembly)) as batches:
                    async for batch in batches:
                        delay_s = 0.0
                        yield batch
            except grpc.aio.AioRpcError as error:
                problem = _sentence(error)
            else:
                problem = "etcd ended it"
            # Once for each outage, however long it takes.
            log.log(
                logging.DEBUG if delay_s else logging.WARNING,
                "watch of %s broke after revision %d, resuming: %s",
                prefix,
                assembly.delivered,
                problem,
            )
            self._fail_over(self._current)
            await asyncio.sleep(delay_s)
            delay_s = min(max(0.05, delay_s * 2), 1.0)

    async def revision(self) -> int:
        # A read of one key goes through the majority, unless it is asked not to.
        request = pb.RangeRequest(key=b"\x00", count_only=True)
        answer = await self._read("revision", lambda to: to.kv.Range, request)
        return int(answer.header.revision)

    async def grant(self, ttl_s: int) -> int:
        # A grant whose answer is lost leaves a lease without keys, which ends by itself.
        request = pb.LeaseGrantRequest(TTL=ttl_s)
        answer = await self._read("grant", lambda to: to.leases.LeaseGrant, request)
        return int(answer.ID)

    async def renew(self, lease: int) -> float:
        request = pb.LeaseKeepAliveRequest(ID=lease)
        answer = await self._read("renew", lambda to: to.keep_alive, request)
        return max(0.0, float(answer.TTL))

    async def revoke(self, lease: int) -> None:
        request = pb.LeaseRevokeRequest(ID=lease)
        try:
            await self._write("revoke", lambda to: to.leases.LeaseRevoke, request)
        except LeaseEndedError:
            return

    async def compact(self, revision: int) -> None:
        """Forget history before ``revision``. etcd does so by itself; tests cannot wait."""
        request = pb.CompactionRequest(revision=revision, physical=True)
        await self._write("compact", lambda to: to.kv.Compact, request)

    def lease_client(self) -> "EtcdLeaseClient":
        """Return what renews a lease from a thread, on connections of its own."""
        return EtcdLeaseClient(self._endpoints, tls=self._tls)

    async def _stream(self, prefix: str, assembly: Assembly) -> AsyncGenerator[Batch, None]:
        """Yield the batches of one watch stream until it ends.

        It asks for the last delivered revision again, and `Assembly` drops it: a watch
        that starts exactly where history was compacted misses deletions made at that
        revision (etcd-io/etcd#18089), while one that starts before is told so.
        """
        assembly.restart()
        call = self._connection(self._current).watches.Watch(metadata=_REQUIRE_LEADER)
        try:
            create = pb.WatchCreateRequest(
                key=prefix.encode(),
                range_end=prefix_end(prefix),
                start_revision=max(1, assembly.delivered),
                progress_notify=True,
                fragment=True,
            )
            await call.write(pb.WatchRequest(create_request=create))
            while (answer := await call.read()) is not grpc.aio.EOF:
                if answer.canceled:
                    if answer.compact_revision:
                        raise CompactedError(assembly.delivered + 1, oldest=answer.compact_revision)
                    log.info("etcd cancelled the watch of %s: %s", prefix, answer.cancel_reason)
                    return
                batch = _batch(answer, assembly)
                if batch is not None:
                    yield batch
        except asyncio.InvalidStateError:
            # grpc.aio says so when a stream broke before the request was written.
            return
        finally:
            call.cancel()

    async def _version(self, index: int) -> str | UnavailableError:
        stub = self._connection(index).maintenance
        try:
            answer = await stub.Status(pb.StatusRequest(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            return UnavailableError(f"etcd at {self._endpoints[index]}: {_sentence(error)}")
        return str(answer.version)

    async def _read(self, operation: str, method: _Method, request: object) -> Any:
        try:
            return await self._call(operation, method, request)
        except grpc.aio.AioRpcError as error:
            _raise_for_read(operation, request, error)

    async def _write(self, operation: str, method: _Method, request: object) -> Any:
        try:
            return await self._call(operation, method, request)
        except grpc.aio.AioRpcError as error:
            _raise_for_write(operation, error)

    async def _call(self, operation: str, method: _Method, request: object) -> Any:
        """Ask the current member of etcd; those that cannot be reached are passed over."""
        began_s = time.monotonic()
        deadline_s = began_s + self._timeout_s
        try:
            for _ in self._connections[1:]:
                try:
                    return await self._ask(method, request, deadline_s)
                except grpc.aio.AioRpcError as error:
                    if not _never_sent(error):
                        raise
            return await self._ask(method, request, deadline_s)
        finally:
            self._observe(operation, time.monotonic() - began_s)

    async def _ask(self, method: _Method, request: object, deadline_s: float) -> Any:
        index = self._current
        try:
            return await method(self._connection(index))(
                request, timeout=deadline_s - time.monotonic(), metadata=_REQUIRE_LEADER
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._fail_over(index)
            raise

    def _connection(self, index: int) -> _Connection:
        """Return a connection that shows the certificate of this moment."""
        connection = self._connections[index]
        if self._tls is not None and self._tls.generation != connection.generation:
            self._former.append(connection)
            connection = _Connection(self._endpoints[index], self._tls)
            self._connections[index] = connection
        return connection

    def _fail_over(self, failed: int) -> None:
        """Turn to the next member of etcd, unless another call has done so already."""
        if self._current == failed:
            self._current = (failed + 1) % len(self._connections)


class EtcdLeaseClient:
    """Renews leases from one thread, which no stall of the event loop can hold up."""

    def __init__(self, endpoints: Sequence[str], *, tls: ChannelTls | None) -> None:
        self._endpoints = tuple(endpoints)
        self._tls = tls
        self._current = 0
        self._channel: grpc.Channel | None = None
        self._generation = 0

    def renew(self, lease: int, *, timeout_s: float) -> float:
        """Renew the lease; return the seconds it now has. 0.0: it has ended.

        Raises:
            UnavailableError: no answer; the next call asks the next member of etcd.
        """
        if self._tls is not None and self._tls.generation != self._generation:
            # What we show at the next connection is the certificate of this moment.
            self.close()
            self._generation = self._tls.generation
        if self._channel is None:
            self._channel = self._open(self._endpoints[self._current])
        keep_alive = self._channel.unary_unary(
            _KEEP_ALIVE,
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        request = pb.LeaseKeepAliveRequest(ID=lease)
        try:
            answer = keep_alive(request, timeout=timeout_s, metadata=_REQUIRE_LEADER)
        except grpc.RpcError as error:
            if len(self._endpoints) > 1:
                self.close()
                self._current = (self._current + 1) % len(self._endpoints)
            raise UnavailableError(f"lease not renewed: {_sentence(error)}") from error
        return max(0.0, float(answer.TTL))

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _open(self, endpoint: str) -> grpc.Channel:
        if self._tls is None:
            return grpc.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        return grpc.secure_channel(
            endpoint, self._tls.channel_credentials(), options=_CHANNEL_OPTIONS
        )


def check_version(endpoint: str, version: str) -> None:
    """Raise PreconditionError for a version of etcd that we do not trust with data."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    numbers = tuple(int(number) for number in match.groups()) if match else (0, 0, 0)
    if numbers < OLDEST_VERSION or numbers in CORRUPTING_VERSIONS:
        raise PreconditionError(
            f"etcd at {endpoint} has version {version}; it must be 3.4.22 or newer,"
            " and not 3.5.0 to 3.5.2, which can corrupt data when killed under load"
        )


def _entry(kv: Any) -> Entry:
    return Entry(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision, kv.lease)


def _batch(answer: Any, assembly: Assembly) -> Batch | None:
    if answer.created:
        return None
    if not answer.events and not answer.fragment:
        return assembly.bookmark(answer.header.revision)
    return assembly.add(map(_event, answer.events), more=answer.fragment)


def _event(event: Any) -> Event:
    kv = event.kv
    # 1 is DELETE: kv then holds the key and the revision alone.
    entry = None if event.type == 1 else _entry(kv)
    return Event(kv.key.decode(), entry, kv.mod_revision)


def _compare(condition: Condition) -> Any:
    key = condition.key.encode()
    match condition:
        case Unchanged(_, revision):
            return pb.Compare(key=key, target=pb.Compare.MOD, mod_revision=revision)
        case HasValue(_, value):
            return pb.Compare(key=key, target=pb.Compare.VALUE, value=value)
        case Fence(revision):
            return pb.Compare(key=key, target=pb.Compare.CREATE, create_revision=revision)


def _request(write: Write) -> Any:
    match write:
        case Put(key, value, lease):
            put = pb.PutRequest(key=key.encode(), value=value, lease=lease)
            return pb.RequestOp(request_put=put)
        case Delete(key):
            delete = pb.DeleteRangeRequest(key=key.encode())
            return pb.RequestOp(request_delete_range=delete)


def _look_up(key: str) -> Any:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key.encode()))


def _sentence(error: grpc.RpcError) -> str:
    """Say what gRPC or etcd said, without gRPC's wrapping."""
    return f"{error.details() or 'no details'} ({error.code().name})"


def _never_sent(error: grpc.RpcError) -> bool:
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith(_NEVER_SENT)


def _raise_for_read(operation: str, request: Any, error: grpc.aio.AioRpcError) -> NoReturn:
    match error.code():
        case grpc.StatusCode.OUT_OF_RANGE:
            # etcd does not say where history begins: at least after what was asked for.
            raise CompactedError(request.revision, oldest=request.revision + 1) from error
        case (
            grpc.StatusCode.UNAUTHENTICATED
            | grpc.StatusCode.PERMISSION_DENIED
            | grpc.StatusCode.UNIMPLEMENTED
            | grpc.StatusCode.INVALID_ARGUMENT
        ):
            raise StoreError(f"etcd, {operation}: {_sentence(error)}") from error
        case _:
            raise UnavailableError(f"etcd, {operation}: {_sentence(error)}") from error


def _raise_for_write(operation: str, error: grpc.aio.AioRpcError) -> NoReturn:
    sentence = f"etcd, {operation}: {_sentence(error)}"
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            raise LeaseEndedError(sentence) from error
        case grpc.StatusCode.INVALID_ARGUMENT:
            raise ValueError(sentence) from error
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise UnavailableError(sentence) from error
        case (
            grpc.StatusCode.UNAUTHENTICATED
            | grpc.StatusCode.PERMISSION_DENIED
            | grpc.StatusCode.UNIMPLEMENTED
            | grpc.StatusCode.OUT_OF_RANGE
        ):
            raise StoreError(sentence) from error
        case _ if _never_sent(error):
            raise UnavailableError(sentence) from error
        case _:
            raise OutcomeUnknownError(sentence) from error
