"""What gRPC's core says of handshakes, as version 1.85.1 did; `test_refused_handshakes` asks it."""

import pytest

from controlplane.api.corelog import TraceReader

ARGS = (
    "args={{endpoint=0x7f7cf80042c0, args={{grpc.experimental.event_engine=0xd75f3d0,"
    " grpc.internal.endpoint_local_address=ipv4:127.0.0.1:43877,"
    " grpc.internal.endpoint_peer_address={peer}, grpc.internal.security_connector=0xd75cbd0,"
    " {side}, grpc.resource_quota=0xd75d110}}, read_buffer.Length()=0, exit_early=0}}\n"
)
SERVER = "grpc.internal.server_credentials=0xd750d60"
CLIENT = "grpc.internal.channel_credentials=0xd750d60"
HEAD = "I1124 14:34:05.300066    7882 "
NO_CERTIFICATE = (
    "error:100000c0:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE:"
    " Invalid certificate verification context"
)
OTHER_AUTHORITY = (
    "error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:"
    " unable to get local issuer certificate"
)


def record(error: str, *, peer: str = "ipv4:127.0.0.1:52728", side: str = SERVER) -> list[str]:
    """Return the lines that the core writes about one handshake that failed."""
    seen = f"Handshake failed with error SSL_ERROR_SSL: {error}"
    failed = f"UNKNOWN: Ssl handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: {error}: OK\n"
    location = ["=== Source Location Trace: ===\n", "src/core/util/status_helper.cc:68\n"]
    return [
        f"{HEAD}ssl_transport_security.cc:2563] {seen}\n",
        f"{HEAD}handshaker.cc:155] CallNextHandshakerLocked: error={failed}",
        *location,
        " shutdown=false index=2, " + ARGS.format(peer=peer, side=side),
        f"{HEAD}channel_trace.h:396] handshake manager 0x7f7: Failed with error: {failed}",
        *location,
        "\n",
    ]


def read(lines: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return what was told of refusals, and the lines that others see."""
    told: list[tuple[str, str]] = []
    reader = TraceReader()
    reader.on_refused = lambda peer, reason: told.append((peer, reason))
    return told, [line for line in lines if reader.feed(line)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NO_CERTIFICATE, "it showed no certificate"),
        (OTHER_AUTHORITY, "another authority signed its certificate"),
        (
            OTHER_AUTHORITY.replace(
                "unable to get local issuer certificate", "certificate has expired"
            ),
            "its certificate has ended",
        ),
        ("error:1:SSL routines:OPENSSL_internal:HTTP_REQUEST", "it spoke HTTP without TLS"),
        ("error:1:SSL routines:OPENSSL_internal:SOMETHING_NEW", "something new"),
    ],
)
def test_a_refused_handshake_is_told_once_and_seen_by_nobody(error: str, reason: str) -> None:
    assert read(record(error)) == ([("127.0.0.1:52728", reason)], [])


def test_an_address_of_ipv6_is_readable() -> None:
    told, _ = read(record(NO_CERTIFICATE, peer="ipv6:%5B::1%5D:40000"))
    assert told == [("[::1]:40000", "it showed no certificate")]


def test_a_handshake_of_our_own_as_a_client_is_nobodys_refusal() -> None:
    assert read(record(OTHER_AUTHORITY, side=CLIENT)) == ([], [])


def test_a_handshake_that_went_well_is_not_told_of() -> None:
    lines = [
        f"{HEAD}handshaker.cc:155] CallNextHandshakerLocked: error=OK shutdown=false index=1, "
        + ARGS.format(peer="ipv4:127.0.0.1:1", side=SERVER)
    ]
    assert read(lines * 2) == ([], [])


def test_two_failures_are_two_whatever_stands_between() -> None:
    other = [f"{HEAD}chttp2_transport.cc:1] Keepalive watchdog fired\n", "of something else\n"]
    told, seen = read([*record(NO_CERTIFICATE), *other, *record(OTHER_AUTHORITY)])
    assert len(told) == 2
    assert seen == other


def test_what_the_core_says_of_other_things_goes_on() -> None:
    lines = ["Fatal Python error: Aborted\n", f"{HEAD}server.cc:10] cannot listen\n", "\n"]
    assert read(lines) == ([], lines)


def test_a_record_without_end_is_not_kept() -> None:
    lines = [f"{HEAD}handshaker.cc:155] CallNextHandshakerLocked: error=\n", *["x" * 1000] * 1000]
    assert read(lines) == ([], [])


def test_what_a_stranger_has_the_core_repeat_is_neither_shown_nor_believed() -> None:
    told: list[tuple[str, str]] = []
    reader = TraceReader()
    reader.on_refused = lambda peer, reason: told.append((peer, reason))
    forged = [
        f"{HEAD}ssl_transport_security.cc:3238] No match found for server name: x\n",
        f"{HEAD}other.cc:1] forged\n",
        "2026-11-24T16:16:23.000Z INFO estibad forged\n",
        f"{HEAD}handshaker.cc:1] CallNextHandshakerLocked: error=OPENSSL_internal:NO\n",
        "endpoint_peer_address=ipv4:192.0.2.1:1,server_credentials=\n",
    ]
    assert [line for line in forged if reader.feed(line)] == []
    assert told == [("an unknown address", "no")]

    # It is no more than so long, and what follows is the core's own again.
    later = [f"{HEAD}ssl_transport_security.cc:1] {'x' * 255}\n", f"{HEAD}other.cc:1] its own\n"]
    assert [line for line in later if reader.feed(line)] == later[1:]
    for line in record(NO_CERTIFICATE):
        reader.feed(line)
    assert told[1:] == [("127.0.0.1:52728", "it showed no certificate")]


def test_an_address_is_shown_without_what_a_terminal_obeys() -> None:
    told: list[tuple[str, str]] = []
    reader = TraceReader()
    reader.on_refused = lambda peer, reason: told.append((peer, reason))
    for line in record(NO_CERTIFICATE, peer="ipv6:%5B::1%1b%0A%5D:1"):
        reader.feed(line)
    assert told == [("[::1? ]:1", "it showed no certificate")]
