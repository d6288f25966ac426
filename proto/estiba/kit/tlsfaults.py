"""Why a member and we do not come together, in a sentence: from gRPC's words and from what we hold.

A member that refuses our certificate closes the connection and does not say why, so we look at
the certificate as it did. Pure.
"""

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from estiba.kit.pem import Life, life_of
from estiba.kit.tls import Pems, TlsFiles

# By what BoringSSL and gRPC's core say, the most telling first.
_THEIRS = {
    "certificate has expired": (
        "the certificate of the member at {address} has ended: run `estiba cluster renew` on its"
        " machine"
    ),
    "certificate is not yet valid": (
        "the certificate of the member at {address} is not valid yet by this machine's clock: is it"
        " right?"
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "what answers at {address} is of another cluster: its certificate is not signed by the"
        " authority in {ca}"
    ),
    "Hostname Verification Check failed": (
        "what answers at {address} is no member of the control plane: its certificate has another"
        " name"
    ),
    "WRONG_VERSION_NUMBER": "what answers at {address} does not speak TLS",
}
# The connection was there, and was closed.
_CLOSED = ("Socket closed", "Connection reset", "recvmsg", "handshake")
_LAST = "last error: "


def their_fault(said: str, *, address: str, files: TlsFiles) -> str:
    """Return what is wrong with who answers, "" if that is not it.

    Args:
        said: the details of the call that failed.
    """
    for words, sentence in _THEIRS.items():
        if words in said:
            return sentence.format(address=address, ca=files.ca)
    return ""


def our_fault(said: str, *, files: TlsFiles, pems: Pems, now_s: float, remedy: str) -> str:
    """Return for what a member must refuse us, "" if there is nothing, or none was reached.

    Args:
        remedy: how a new certificate is had, such as "join again".
    """
    if not any(words in said for words in _CLOSED):
        return ""
    try:
        life, is_known = life_of(pems.cert), is_signed(pems)
    except ValueError as fault:
        return f"our certificate in {files.cert} cannot be read: {fault}"
    if not is_known:
        return (
            f"our certificate in {files.cert} was signed by another authority than that in"
            f" {files.ca}: {remedy}"
        )
    return _time_fault(life, files, now_s, remedy)


def brief(said: str) -> str:
    """Return of gRPC's words those that tell something."""
    return said.rpartition(_LAST)[2]


def _time_fault(life: Life, files: TlsFiles, now_s: float, remedy: str) -> str:
    if life.remaining_s(now_s) <= 0:
        return f"our certificate in {files.cert} ended on {_day(life.ends_s)}: {remedy}"
    if now_s < life.begins_s:
        return (
            f"our certificate in {files.cert} is not valid before {_day(life.begins_s)}: is this"
            " machine's clock right?"
        )
    return ""


def is_signed(pems: Pems) -> bool:
    """Say whether the authority that we trust has signed our certificate, whatever its dates.

    Raises:
        ValueError: one of the two is no certificate.
    """
    authority = x509.load_pem_x509_certificate(pems.ca)
    try:
        x509.load_pem_x509_certificate(pems.cert).verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _day(at_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
