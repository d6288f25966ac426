"""Hear of the handshakes that gRPC's server refuses: from what its C core says on standard error.

Nothing else tells. Python is not called before a handshake is over, and no counter of gRPC's
counts those that fail. So the core is asked to trace handshakes, standard error becomes a pipe
to ourselves, and what is read from it goes on to where it would have gone, without the trace.
What it costs: the last words of a core that aborts are lost; if a later version says it in other
words, nothing is counted, which a test would notice. Python's own output does not pass through.
Nothing is imported here that imports gRPC.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote

from estiba.kit.handshakes import Refused, describe
from estiba.kit.text import plain

_HEADER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (\S+?):\d+\] ")
# Where the trace comes from. The third says that a handshake failed, but not whose.
_TRACING = ("handshaker.cc", "channel_trace.h", "ssl_transport_security.cc", "trace.cc")
# A record goes over several lines: the error with where it was made, then what the connection is.
_REFUSED = re.compile(
    r"CallNextHandshakerLocked: error=.*?OPENSSL_internal:(?P<reason>\w+)(?:: (?P<detail>[^\n]*?))?"
    r"(?:: OK)?\n.*endpoint_peer_address=ipv[46]:(?P<peer>[^,]+),.*server_credentials=",
    re.DOTALL,
)
# More of one record than there ever is.
_MOST = 16_384
# The one thing that the core repeats of what a stranger says, line ends and all: whom it asks for.
_REPEATED = "] No match found for server name: "
_MOST_REPEATED_BYTES = 255


class TraceReader:
    """Takes the core's output line by line. Pure but for whom it tells."""

    def __init__(self) -> None:
        self.on_refused: Refused = lambda peer, reason: None
        self._tracing = False
        self._record = ""
        self._is_doubtful = False
        """A stranger may have written the record: whose it says it is may be another."""
        self._repeated_bytes = 0
        """How many of the next bytes a stranger may have written."""

    def feed(self, line: str) -> bool:
        """Take a line, its end included; return whether it is to be seen by others."""
        header = _HEADER.match(line)
        is_strangers = self._repeated_bytes > 0
        self._repeated_bytes -= len(line.encode(errors="surrogateescape"))
        if header is not None and _REPEATED in line:
            self._repeated_bytes = _MOST_REPEATED_BYTES
        if header is not None:
            self._tracing = header[1].rpartition("/")[2] in _TRACING
            self._record = ""
            self._is_doubtful = is_strangers
        if not self._tracing:
            return not is_strangers
        if len(self._record) < _MOST:
            self._record += line
            refused = _REFUSED.search(self._record)
            if refused is not None:
                self._record = ""
                reason = plain(describe(refused["reason"], refused["detail"] or ""), most=200)
                peer = plain(unquote(refused["peer"]), most=100)
                self.on_refused("an unknown address" if self._is_doubtful else peer, reason)
        return False


@contextmanager
def hearing() -> Iterator[TraceReader]:
    """Listen to the core for the length of the block, in which gRPC is first imported.

    A thread of ours calls the reader's ``on_refused``.
    """
    # Whoever has asked gRPC for another trace gets that, and of handshakes nobody hears.
    os.environ.setdefault("GRPC_TRACE", "handshaker")
    seen = os.dup(2)
    reading, writing = os.pipe()
    # If we are slow to read, lines are lost; the core's threads are not held up.
    os.set_blocking(writing, False)
    os.dup2(writing, 2)
    os.close(writing)
    # Stays open: who logs has it, and logs to the last.
    sys.stderr = os.fdopen(os.dup(seen), "w", buffering=1, errors="backslashreplace")
    reader = TraceReader()
    thread = threading.Thread(target=_read, args=(reading, seen, reader), daemon=True)
    thread.start()
    try:
        yield reader
    finally:
        # The pipe's last writer goes, and the thread reads its end.
        os.dup2(seen, 2)
        thread.join(timeout=2.0)


def _read(reading: int, seen: int, reader: TraceReader) -> None:
    with os.fdopen(reading, "r", errors="surrogateescape") as lines:
        for line in lines:
            if reader.feed(line):
                # Where nobody reads it any more, it is lost; the trace must be read on.
                with suppress(OSError):
                    os.write(seen, line.encode(errors="surrogateescape"))
