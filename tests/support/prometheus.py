"""A real Prometheus with the project's own configuration, on loopback, for one test."""

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from estiba.kit.tls import TlsFiles
from tests.support.waiting import eventually

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"


class Prometheus:
    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self._address}{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float | None:
        """Evaluate an expression that gives one number; None while it gives nothing."""
        result = self.ask("/api/v1/query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None

    def targets(self) -> list[dict[str, Any]]:
        targets: list[dict[str, Any]] = self.ask("/api/v1/targets")["activeTargets"]
        return targets


@contextmanager
def running_prometheus(folder: Path, *, discovery: str, tls: TlsFiles) -> Iterator[Prometheus]:
    """Start Prometheus with deploy/prometheus/prometheus.yml; ``discovery`` is estibad's HOST:PORT.

    Only the address, and the intervals (one second, so that a test need not wait
    for fifteen), differ from the file as it ships.
    """
    (folder / "tls").mkdir()
    for path, name in ((tls.ca, "ca.pem"), (tls.cert, "metrics.pem")):
        shutil.copy(path, folder / "tls" / name)
    text = CONFIGURATION.read_text().replace("127.0.0.1:7480", discovery)
    for line in ("scrape_interval: 15s", "refresh_interval: 30s", "refresh_interval: 15s"):
        text = text.replace(line, line.split(":")[0] + ": 1s")
    text = text.replace("scrape_timeout: 10s", "scrape_timeout: 1s")
    (folder / "prometheus.yml").write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yml'}"),
                *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            prometheus = Prometheus(address)
            eventually(lambda: _answers(address), within_s=20, what="Prometheus is ready")
            yield prometheus
        finally:
            server.terminate()
            server.wait(timeout=30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
