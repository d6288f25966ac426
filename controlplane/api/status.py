"""Errors to gRPC codes: one table, used for every method by `controlplane.api.guard`.

An error's message becomes the status message as it stands: the classes are written to
be read by whoever made the call.
"""

import grpc

from controlplane.errors import (
    AlreadyExistsError,
    CertificateEndedError,
    CompactedError,
    ConflictError,
    DeniedError,
    DeposedError,
    EstibaError,
    InvalidError,
    LeaseEndedError,
    NoAuthorityError,
    NotFoundError,
    OutcomeUnknownError,
    PreconditionError,
    UnavailableError,
    UnreachableError,
)

CODES: dict[type[EstibaError], grpc.StatusCode] = {
    InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    ConflictError: grpc.StatusCode.ABORTED,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    CompactedError: grpc.StatusCode.OUT_OF_RANGE,
    DeniedError: grpc.StatusCode.PERMISSION_DENIED,
    CertificateEndedError: grpc.StatusCode.UNAUTHENTICATED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    UnreachableError: grpc.StatusCode.UNAVAILABLE,
    NoAuthorityError: grpc.StatusCode.UNAVAILABLE,
    # Every write is safe to send again, so the caller's move is the same as if nothing happened.
    OutcomeUnknownError: grpc.StatusCode.UNAVAILABLE,
    DeposedError: grpc.StatusCode.UNAVAILABLE,
    LeaseEndedError: grpc.StatusCode.UNAVAILABLE,
}

INTERNAL = "internal error, see estibad's log"


def status_of(error: EstibaError) -> tuple[grpc.StatusCode, str]:
    """Return code and message; several faults of one request stand on lines of their own."""
    if isinstance(error, InvalidError):
        lines = [f"{field}: {sentence}" if field else sentence for field, sentence in error.faults]
        return CODES[InvalidError], "\n".join(lines)
    known = (CODES[each] for each in type(error).__mro__ if each in CODES)
    return next(known, grpc.StatusCode.INTERNAL), str(error)
