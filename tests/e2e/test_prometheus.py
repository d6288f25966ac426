"""A real Prometheus finds every program by service discovery, and its sums are the kernel's."""

import os
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from estiba.kit.tls import TlsFiles
from tests.support.dev import DevCluster
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.waiting import eventually


@pytest.fixture
def prometheus(cluster: DevCluster, tmp_path: Path) -> Iterator[Prometheus]:
    described = cluster.described
    tls = TlsFiles(**{name: Path(path) for name, path in described["metrics_tls"].items()})
    with running_prometheus(tmp_path, discovery=described["web"][0], tls=tls) as server:
        yield server


def counted(cluster: DevCluster) -> int:
    return sum(len(pids) for pids in cluster.inits().values())


def test_every_target_is_discovered_and_scraped(
    cluster: DevCluster, prometheus: Prometheus
) -> None:
    def all_up() -> bool:
        targets = prometheus.targets()
        return len(targets) == 5 and all(target["health"] == "up" for target in targets)

    eventually(all_up, within_s=30, what="two estibads and three agents are up")
    assert prometheus.value("sum(up)") == 5
    assert prometheus.value("sum(estiba_leader)") == 1


def test_the_sum_of_running_replicas_is_the_number_of_containers_after_a_kill_and_a_scale(
    cluster: DevCluster, service: str, prometheus: Prometheus
) -> None:
    cluster.create(service)

    def agreed() -> bool:
        return prometheus.value("sum(estiba_service_replicas_running)") == counted(cluster) > 0

    eventually(agreed, within_s=30, what="Prometheus and the kernel agree")
    os.kill(next(iter(cluster.pids(service).values())), signal.SIGKILL)
    runs = f'max(estiba_container_runs_total{{service="{service}"}})'
    eventually(lambda: prometheus.value(runs) == 2, within_s=30, what="the second run is seen")
    eventually(agreed, within_s=30, what="they agree after a container was killed")
    cluster.estiba("service", "scale", f"{service}=7")
    eventually(
        lambda: (
            agreed()
            and prometheus.value(f'estiba_service_replicas_desired{{service="{service}"}}') == 7
        ),
        within_s=30,
        what="they agree after a scale",
    )


def test_the_series_of_a_removed_service_go_with_it(
    cluster: DevCluster, service: str, prometheus: Prometheus
) -> None:
    cluster.create(service)
    series = f'count(estiba_container_cpu_seconds_total{{service="{service}"}})'
    eventually(lambda: prometheus.value(series) == 3, within_s=30, what="three series")

    cluster.remove(service)

    eventually(lambda: prometheus.value(series) is None, within_s=30, what="no series any more")


def test_promtool_finds_nothing_on_either_program(cluster: DevCluster, service: str) -> None:
    cluster.create(service)
    described = cluster.described
    tls = described["metrics_tls"]
    context = ssl.create_default_context(cafile=tls["ca"])
    context.check_hostname = False
    context.load_cert_chain(tls["cert"], tls["key"])
    for address in (*described["web"], *(node["metrics"] for node in described["nodes"])):
        with urllib.request.urlopen(f"https://{address}/metrics", context=context) as answer:
            text = answer.read()
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert not checked.stdout + checked.stderr


def test_metrics_are_refused_without_a_certificate_and_to_a_node(cluster: DevCluster) -> None:
    described = cluster.described
    url = f"https://{described['web'][0]}/metrics"
    context = ssl.create_default_context(cafile=described["tls"]["ca"])
    context.check_hostname = False
    with pytest.raises(OSError, match=r"(?i)certificate|reset|eof|closed"):
        urllib.request.urlopen(url, context=context, timeout=5)

    pki = cluster.folder / "pki"
    context.load_cert_chain(pki / "n1.pem")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, context=context, timeout=5)
    refused.value.close()
    assert refused.value.code == 403
