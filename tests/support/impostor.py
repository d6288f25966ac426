"""Somebody who listens where a control plane should: in between, or with another time."""

import email.utils
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Impostor:
    authority: bytes
    """What it says that its authority is."""
    ahead_s: float = 0.0
    """By how much its clock is ahead."""
    answer: Callable[[bytes], tuple[int, bytes] | None] = lambda _: None
    """To what is posted: status and body; None: it hangs up."""
    address: str = ""
    heard: list[str] = field(default_factory=list)
    """Every request line, and every body."""


@contextmanager
def listening(impostor: Impostor, certificate: Path) -> Iterator[Impostor]:
    """Serve with a file that holds certificate and key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            impostor.heard.append(self.requestline)
            self._say(200, impostor.authority)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            impostor.heard += [self.requestline, body.decode()]
            answer = impostor.answer(body)
            if answer is not None:
                self._say(*answer)

        def _say(self, status: int, body: bytes) -> None:
            self.send_response_only(status)
            date = email.utils.formatdate(time.time() + impostor.ahead_s, usegmt=True)
            self.send_header("Date", date)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: Any) -> None:
            """Say nothing on the terminal."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Quiet(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    impostor.address = f"127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, name="impostor")
    serving.start()
    try:
        yield impostor
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *whose: Any) -> None:
        """A joiner that hangs up in the middle is what tests are about."""
