"""Answer on the port where machines join, with a certificate of nobody's; as a service of systemd.

impostor.py SECONDS    by which its clock is ahead of this machine's
"""

import http.server
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PORT = 7444


class Answer(http.server.BaseHTTPRequestHandler):
    certificate = b""
    ahead_s = 0

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.ahead_s)

    def do_GET(self) -> None:  # the name is the library's
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.certificate)))
        self.end_headers()
        self.wfile.write(self.certificate)


def main() -> None:
    Answer.ahead_s = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key.pem"), Path(folder, "cert.pem")
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                ),
                *("-nodes", "-subj", "/CN=nobody", "-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        Answer.certificate = certificate.read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        subprocess.run(["systemd-notify", "--ready"], check=True)
        sys.stderr.write("answers\n")
        server.serve_forever()


if __name__ == "__main__":
    main()
