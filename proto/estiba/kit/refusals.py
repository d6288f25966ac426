"""Count the handshakes that our listeners refuse, and say so, without filling the log."""

import logging
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

from estiba.kit.clock import Clock
from estiba.kit.handshakes import Refused
from estiba.kit.seldom import Seldom

log = logging.getLogger(__name__)

# A stranger may knock a thousand times a second.
SAID_EVERY_S = 1.0


class Refusals:
    """Those of one program.

    Args:
        listeners: what its listeners are called, such as "api" and "join".
    """

    def __init__(
        self, registry: CollectorRegistry, clock: Clock, *, listeners: Iterable[str]
    ) -> None:
        self._clock = clock
        self._counter = Counter(
            "estiba_refused_handshakes",
            "TLS handshakes that failed: no certificate, one of another authority, one that has"
            " ended, or no TLS at all.",
            ("listener",),
            registry=registry,
        )
        for listener in listeners:
            self._counter.labels(listener)

    def at(self, listener: str) -> Refused:
        """Return what is to be told of each handshake that fails at a listener."""
        said = Seldom(every_s=SAID_EVERY_S)
        unsaid = 0

        def refused(peer: str, reason: str) -> None:
            nonlocal unsaid
            self._counter.labels(listener).inc()
            if not said.due(self._clock.monotonic()):
                unsaid += 1
                return
            more = f" ({unsaid} more before it)" if unsaid else ""
            unsaid = 0
            log.warning("refused a handshake at %s from %s: %s%s", listener, peer, reason, more)

        return refused
