"""Handshakes that fail on our HTTPS listeners: whose they were, and why, in words.

asyncio drops such a connection in silence, before any handler hears of it.
"""

import socket
import ssl
from collections.abc import Callable
from contextvars import ContextVar

Refused = Callable[[str, str], None]
"""Is told the peer's address and the reason."""

_PEER: ContextVar[str] = ContextVar("peer", default="an unknown address")

# By what OpenSSL and BoringSSL say. Of the last a member that trusts another authority tells us,
# or one who takes us for somebody else.
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "HTTP_REQUEST": "it spoke HTTP without TLS",
    "WRONG_VERSION_NUMBER": "it did not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it offered no version of TLS that we take",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust our certificate's authority",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has ended",
}
_CERTIFICATE_REASONS = {
    "certificate has expired": "its certificate has ended",
    "certificate is not yet valid": "its certificate is not valid yet, by this machine's clock",
    "unable to get local issuer certificate": "another authority signed its certificate",
    "self signed certificate": "it signed its certificate itself",
    "self signed certificate in certificate chain": "another authority signed its certificate",
    "self-signed certificate": "it signed its certificate itself",
    "self-signed certificate in certificate chain": "another authority signed its certificate",
    "certificate signature failure": "its certificate's signature is wrong",
}


def describe(reason: str, detail: str) -> str:
    """Say why a handshake failed. Pure.

    Args:
        reason: the library's name for it, such as CERTIFICATE_VERIFY_FAILED.
        detail: what the verification said, if it came to one.
    """
    if reason == "CERTIFICATE_VERIFY_FAILED":
        return _CERTIFICATE_REASONS.get(detail, f"its certificate was refused: {detail}")
    return _REASONS.get(reason, reason.lower().replace("_", " "))


def watch_handshakes(context: ssl.SSLContext, on_refused: Refused) -> None:
    """Tell ``on_refused`` of every handshake of the context that fails.

    A peer that only goes away has not been refused.
    """

    class Watched(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLEOFError):
                raise
            except ssl.SSLError as fault:
                detail = getattr(fault, "verify_message", "")
                on_refused(_PEER.get(), describe(fault.reason or str(fault), detail))
                raise

    context.sslobject_class = Watched


class NotedSocket(socket.socket):
    """A listening socket whose connections' handshakes know where they come from.

    The event loop serves an accepted connection in a copy of the context it was accepted in.
    """

    def accept(self) -> tuple[socket.socket, object]:
        connection, address = super().accept()
        _PEER.set(f"{address[0]}:{address[1]}")
        return connection, address
