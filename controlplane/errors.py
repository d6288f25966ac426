"""The control plane's errors: the class says whose move it is, the message what happened.

EstibaError
├── StoreError              etcd could not do what was asked
│   ├── ConflictError       a key changed after it was read: read and decide again
│   ├── DeposedError        we are not the leader any more: stop deciding
│   ├── LeaseEndedError     the lease named by a write is gone: what hung on it is over
│   ├── CompactedError      that part of history is gone: list again
│   ├── UnavailableError    no answer; nothing was written: try again
│   └── OutcomeUnknownError no answer to a write, which may have happened: read before writing
├── InvalidError            the caller's spec is wrong: every fault with its field
├── NotFoundError           no such object
├── AlreadyExistsError      the name or id is taken
├── PreconditionError       something must be done first; the message says what
├── DeniedError             this caller may not do this
├── CertificateEndedError   this caller's connection is older than its certificate is good
├── UnreachableError        a node or member does not answer
└── NoAuthorityError        this member issues no certificates: another one may

`controlplane.api.status` alone maps these to gRPC codes.
"""

from collections.abc import Sequence


class EstibaError(Exception):
    """Root of this program's errors. Catch it only at a process boundary."""


class StoreError(EstibaError):
    """etcd could not do what was asked."""


class ConflictError(StoreError):
    """The key changed after we read it, so our write was refused.

    To retry is to read again and decide again. Sending the same write twice
    would undo the change that beat us.
    """

    def __init__(self, key: str, *, read_at: int) -> None:
        super().__init__(f"{key} has changed since revision {read_at}")
        self.key = key
        self.read_at = read_at


class DeposedError(StoreError):
    """The leader key is not ours any more, so the write was refused."""


class LeaseEndedError(StoreError):
    """A lease that the write names has ended, so nothing was written."""


class CompactedError(StoreError):
    """The revision asked for is no longer in the store's history."""

    def __init__(self, asked: int, *, oldest: int) -> None:
        super().__init__(f"revision {asked} is gone; history begins at {oldest}: list again")
        self.asked = asked
        self.oldest = oldest


class UnavailableError(StoreError):
    """The store did not answer, and nothing was written."""


class OutcomeUnknownError(StoreError):
    """The store did not answer a write; whether it happened must be read back."""


class InvalidError(EstibaError):
    """What the caller sent is wrong.

    ``faults`` are (field, sentence) pairs, such as
    ("spec.template.resources.limits.memory_bytes", "1000 is below the least the kernel ...").
    """

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {sentence}" for field, sentence in faults))
        self.faults = tuple(faults)


class NotFoundError(EstibaError):
    """There is no such object; the message names it."""


class AlreadyExistsError(EstibaError):
    """The name or id is taken; the message names the object that has it."""


class PreconditionError(EstibaError):
    """Something else has to be done first; the message says what."""


class DeniedError(EstibaError):
    """The caller is known and may not do this."""


class CertificateEndedError(EstibaError):
    """TLS would not let the caller in any more; the message says since when.

    It is no DeniedError, on which an agent stops its containers: with the certificate that it has
    by now it may come back at once.
    """


class UnreachableError(EstibaError):
    """A node or a member does not answer; the message names it."""


class NoAuthorityError(EstibaError):
    """This member has no key to sign certificates with; another one may."""

    def __init__(self, member_id: str) -> None:
        super().__init__(
            f"member {member_id} holds no authority: ask another one, or name the authority's"
            " files in its configuration, under [authority]"
        )
