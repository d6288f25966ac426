"""Who may call what: one table for all services of estibad."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar

from controlplane.errors import DeniedError
from estiba.kit.tls import Identity, Role, identity_of

CONTROL = "estiba.v1.Control"
DISPATCHER = "estiba.v1.Dispatcher"
CERTIFICATES = "estiba.v1.Certificates"
PEER = "estiba.v1.Peer"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

# Metrics certificates open the web server only, and renew themselves. Members' are renewed on
# their own machine. Health and reflection tell nothing of anybody's
# services; whoever has a certificate of another role may ask.
MAY_CALL: Mapping[Role, frozenset[str]] = {
    Role.USER: frozenset({CONTROL, CERTIFICATES, HEALTH, REFLECTION}),
    Role.NODE: frozenset({DISPATCHER, CERTIFICATES, HEALTH, REFLECTION}),
    Role.MEMBER: frozenset({PEER, CONTROL, HEALTH, REFLECTION}),
    Role.METRICS: frozenset({CERTIFICATES, HEALTH, REFLECTION}),
}

CALLER: ContextVar[Identity] = ContextVar("caller")


def caller() -> Identity:
    """Return who makes the call that is being answered."""
    return CALLER.get()


def identify(auth_context: Mapping[str, Iterable[bytes]]) -> Identity:
    """Read the caller from what TLS verified.

    Raises:
        DeniedError: there is no certificate, or it names no role of ours.
    """
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if not certificates:
        raise DeniedError("a client certificate is needed")
    try:
        return identity_of(certificates[0])
    except ValueError as error:
        raise DeniedError(str(error)) from error


def check(identity: Identity, method: str) -> None:
    """Refuse a method, such as ``/estiba.v1.Control/GetNode``, that the table does not grant.

    Raises:
        DeniedError: says who may not call what.
    """
    service = method.strip("/").partition("/")[0]
    if service not in MAY_CALL[identity.role]:
        raise DeniedError(f"{identity} may not call {method.strip('/')}")
