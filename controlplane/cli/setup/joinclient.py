"""Speak to a control plane as a machine that has no certificate yet. HTTPS alone, no gRPC.

First the authority is read, from whoever answers, and nothing is said. Only once it is the one
that the token names, and the other side has proved to be its member, is the token's secret sent.
"""

import email.utils
import errno
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus

from google.protobuf.json_format import MessageToDict, Parse, ParseError

from controlplane.cli.errors import CliError
from controlplane.cli.setup.places import JOIN_PORT
from estiba.kit import jointoken
from estiba.kit.jointoken import JoinToken
from estiba.kit.text import plain
from estiba.kit.tls import MEMBER_SERVER_NAME
from estiba.v1 import certificates_pb2 as pb

CONNECT_WITHIN_S = 10.0
ANSWER_WITHIN_S = 30.0
# Certificates are good from five minutes before they were made.
MOST_SKEW_S = 300.0
MOST_BYTES = 64 * 1024
TRY_FOR_S = 30.0
PAUSE_S = 1.0


class UnknownOutcomeError(CliError):
    """No answer came: this machine may have been admitted."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read HOST or HOST:PORT; an IPv6 address with a port stands in brackets.

    Raises:
        CliError: it is neither.
    """
    host, port = text, str(JOIN_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = (rest.removeprefix(":") or port) if bracket else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CliError(f"{text!r} is not HOST or HOST:PORT of a control plane")
    return Address(host, int(port))


@dataclass(frozen=True, slots=True)
class Trusted:
    """A cluster that is the token's."""

    address: Address
    authority_pem: bytes
    our_address: str
    """Under which address we reach it: how the machines of its network see us."""


def meet(address: Address, token: JoinToken) -> Trusted:
    """See that who answers there is of the token's cluster, and that the clocks agree.

    Raises:
        CliError: it does not answer, is another, or has another time.
    """
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with closing(_connect(address, unverified)) as link:
            ours = str(link.getsockname()[0])
            status, date, body = _ask(link, "GET", "/v1/authority")
    except (TimeoutError, OSError, http.client.HTTPException) as fault:
        raise CliError(f"{address} does not answer as a control plane does: {fault}") from fault
    authority = _read_authority(address, status, body)
    if jointoken.digest_of(authority) != token.digest:
        raise CliError(
            f"the machine at {address} is not the cluster that the token is of: somebody may be in "
            "between, or the token is another cluster's; nothing was said to it"
        )
    skew = skew_fault(date, time.time())
    if skew:
        raise CliError(skew)
    # Written anew: whatever else stood in the answer, such as a second certificate, is not trusted.
    return Trusted(address, ssl.DER_cert_to_PEM_cert(authority).encode(), ours)


def join(
    trusted: Trusted, request: pb.JoinRequest, *, sleep: Callable[[float], None] = time.sleep
) -> pb.JoinResponse:
    """Ask for admission, again while the cluster cannot answer for the moment.

    Raises:
        CliError: it says no; in its own words.
        UnknownOutcomeError: it said nothing; to ask again with the same key is safe.
    """
    deadline = time.monotonic() + TRY_FOR_S
    body = json.dumps(MessageToDict(request, preserving_proto_field_name=True)).encode()
    while True:
        status, answer = _post(trusted, body)
        if status == HTTPStatus.OK:
            return _read_response(trusted.address, answer)
        sentence = _sentence(answer) or f"{trusted.address} answered {status}"
        if status != HTTPStatus.SERVICE_UNAVAILABLE:
            raise CliError(sentence)
        if time.monotonic() > deadline:
            raise UnknownOutcomeError(sentence)
        sleep(PAUSE_S)


def skew_fault(date: str, now_s: float) -> str:
    """Say by how much this machine's clock differs from the cluster's, "" if it does not. Pure.

    Args:
        date: the HTTP header of an answer that has just come.
    """
    try:
        theirs_s = email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return ""
    ahead_s = now_s - theirs_s
    if abs(ahead_s) <= MOST_SKEW_S:
        return ""
    return (
        f"this machine's clock is {_span(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} "
        "the cluster's, and certificates begin and end by the clock: set it right"
    )


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


# --------------------------------------------------------------------------------------- connection


def _connect(address: Address, context: ssl.SSLContext) -> ssl.SSLSocket:
    try:
        link = socket.create_connection((address.host, address.port), timeout=CONNECT_WITHIN_S)
    except OSError as fault:
        raise CliError(_unreachable(address, fault)) from fault
    except UnicodeError as fault:
        raise CliError(f"no machine is called {address.host!r}: that is no host name") from fault
    try:
        link.settimeout(ANSWER_WITHIN_S)
        return context.wrap_socket(link, server_hostname=MEMBER_SERVER_NAME)
    except OSError:
        link.close()
        raise


def _unreachable(address: Address, fault: OSError) -> str:
    reason = (fault.strerror or str(fault)).lower()
    if isinstance(fault, socket.gaierror):
        return f"no machine is called {address.host}: {reason}"
    if fault.errno == errno.ECONNREFUSED:
        return f"nothing listens at {address}: is that a control plane, and does estibad run there?"
    return f"no way leads to {address}: {reason}; is there a network, or a firewall, in between?"


def _ask(
    link: ssl.SSLSocket, method: str, path: str, body: bytes | None = None
) -> tuple[int, str, bytes]:
    """Return status, the Date header, and the body."""
    asking = http.client.HTTPConnection("estiba")
    asking.sock = link
    headers = {"Content-Type": "application/json"} if body else {}
    asking.request(method, path, body=body, headers=headers)
    answer = asking.getresponse()
    return answer.status, answer.headers.get("Date", ""), answer.read(MOST_BYTES)


def _read_authority(address: Address, status: int, body: bytes) -> bytes:
    """Return the DER of the certificate that the answer begins with."""
    try:
        der = ssl.PEM_cert_to_DER_cert(body.decode(errors="replace").strip())
    except ValueError:
        der = b""
    if status != HTTPStatus.OK or not der:
        raise CliError(f"what answers at {address} is no control plane of Estiba")
    return der


def _post(trusted: Trusted, body: bytes) -> tuple[int, bytes]:
    address = trusted.address
    context = ssl.create_default_context(cadata=trusted.authority_pem.decode())
    try:
        link = _connect(address, context)
    except ssl.SSLCertVerificationError as fault:
        raise CliError(_unverified(address, fault)) from fault
    except OSError as fault:
        raise CliError(f"{address} does not answer any more: {fault}") from fault
    try:
        with closing(link):
            status, _, answer = _ask(link, "POST", "/v1/join", body)
    except (OSError, http.client.HTTPException) as fault:
        raise UnknownOutcomeError(f"{address} was asked, and did not answer: {fault}") from fault
    return status, answer


def _unverified(address: Address, fault: ssl.SSLCertVerificationError) -> str:
    if fault.verify_message == "certificate has expired":
        return (
            f"the certificate of the control plane at {address} has ended: "
            "run `estiba cluster renew` on it"
        )
    return (
        f"the machine at {address} does not prove to be the cluster that the token is of: somebody "
        f"may be in between ({fault.verify_message}); the token was not sent"
    )


def _read_response(address: Address, answer: bytes) -> pb.JoinResponse:
    try:
        return Parse(answer, pb.JoinResponse(), ignore_unknown_fields=True)
    except (ParseError, UnicodeDecodeError) as fault:
        raise UnknownOutcomeError(f"{address} gave an answer that cannot be read") from fault


def _sentence(answer: bytes) -> str:
    try:
        said = json.loads(answer)
    except ValueError:
        return ""
    return plain(str(said.get("error", ""))) if isinstance(said, dict) else ""
