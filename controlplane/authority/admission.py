"""Who is admitted as a node: the rules, without the store and without a clock. Pure.

Whoever does not know a token's secret learns nothing of the token, not even that it exists.
"""

import hmac
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from estiba import wire
from estiba.v1 import types_pb2 as v1

LIFE_S = 24 * 3600.0
MOST_LIFE_S = 30 * 24 * 3600.0
USES = 10
MOST_USES = 10_000

_OF_NO_SECRET = bytes(32)
_MAKE_ANOTHER = "make another with `estiba cluster token create`"


class Outcome(StrEnum):
    """How a request to join ended; the label of `estiba_join_requests_total`."""

    ADMITTED = "admitted"
    AGAIN = "again"
    UNKNOWN = "unknown_token"
    EXPIRED = "expired"
    USED_UP = "used_up"
    REMOVED_NODE = "removed_node"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no, in a sentence for the joiner."""

    outcome: Outcome
    sentence: str


def judge(
    token: v1.JoinToken, secret: str, node_id: str, *, removed: bool, now_s: float
) -> Refusal | None:
    """Return why a node is not admitted; None: it is.

    Args:
        token: what is stored under the id that was sent; an empty one: nothing.
        removed: an operator has removed the node for good.
    """
    # In the same time whatever is stored: it must not tell whether there is such a token.
    stored = token.secret_sha256 or _OF_NO_SECRET
    if not hmac.compare_digest(stored, secret_digest(secret)):
        return Refusal(Outcome.UNKNOWN, f"this cluster has no such token: {_MAKE_ANOTHER}")
    if now_s >= wire.seconds(token.expires_at):
        ended = token.expires_at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
        return Refusal(Outcome.EXPIRED, f"the token expired on {ended} UTC: {_MAKE_ANOTHER}")
    if removed:
        return Refusal(
            Outcome.REMOVED_NODE,
            f"node {node_id} was removed from the cluster: run `estiba node leave` on the machine,"
            " then join again with a new key",
        )
    if node_id not in token.admitted and len(token.admitted) >= token.uses:
        nodes = "1 node" if token.uses == 1 else f"{token.uses} nodes"
        return Refusal(
            Outcome.USED_UP, f"the token has admitted the {nodes} that it was for: {_MAKE_ANOTHER}"
        )
    return None


def admit(token: v1.JoinToken, node_id: str) -> v1.JoinToken:
    """Return the token as it is once it has admitted the node; a node counts once."""
    after = v1.JoinToken()
    after.CopyFrom(token)
    if node_id not in after.admitted:
        after.admitted.append(node_id)
    return after


def secret_digest(secret: str) -> bytes:
    """Return what is stored of a secret."""
    return sha256(secret.encode()).digest()
