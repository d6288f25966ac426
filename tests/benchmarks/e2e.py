"""The dev cluster: up to ready, services to running, memory and processor time when idle."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.e2e.conftest import push_sample
from tests.support.benchmark import Figure, tell, version_of
from tests.support.dev import DevCluster
from tests.support.waiting import eventually

REPLICAS = (1, 10, 50, 100)
IDLE_S = 20.0
ROUNDS = 3


def pss_mib(pid: int) -> float:
    """Return a process's proportional share of memory, MiB. Source: proc(5), smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no Pss in smaps_rollup of {pid}")


def cpu_s(pid: int) -> float:
    """Return the processor time a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kind(program: str) -> str:
    """``n1-agent`` and ``n2-agent`` are both an agent."""
    first, _, rest = program.partition("-")
    return rest if first[:1] == "n" and first[1:].isdigit() else first


def pids_by_kind(cluster: DevCluster) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for name, program in cluster.programs().items():
        if program.get("pid"):
            kinds.setdefault(kind(name), []).append(program["pid"])
    return kinds


def memory(cluster: DevCluster, when: str) -> list[Figure]:
    return [
        Figure(f"PSS of one {name}, {when}", sum(map(pss_mib, pids)) / len(pids), "MiB")
        for name, pids in sorted(pids_by_kind(cluster).items())
    ]


def idle(cluster: DevCluster, when: str) -> list[Figure]:
    """Measure how much of one core each kind of program uses while nothing happens."""
    kinds = pids_by_kind(cluster)
    before = {name: sum(map(cpu_s, pids)) for name, pids in kinds.items()}
    began = time.monotonic()
    time.sleep(IDLE_S)
    passed = time.monotonic() - began
    return [
        Figure(
            f"idle cpu of one {name}, {when}",
            100 * (sum(map(cpu_s, pids)) - before[name]) / passed / len(pids),
            "%",
        )
        for name, pids in sorted(kinds.items())
    ]


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one service's life, the image present."""

    create: float
    """Until the command returns, all replicas running."""
    scale: float
    """To no replicas, until the command returns."""
    remove: float
    """With all replicas running, until no container is left."""


def lives(cluster: DevCluster, replicas: int) -> list[Round]:
    """Time what happens to services of so many replicas."""
    rounds = []
    for number in range(ROUNDS):
        name = f"bench-{replicas}-{number}"
        began = time.monotonic()
        cluster.create(name, replicas=replicas)
        created = time.monotonic()
        cluster.estiba("service", "scale", f"{name}=0")
        scaled = time.monotonic()
        cluster.estiba("service", "scale", f"{name}={replicas}")
        removing = time.monotonic()
        cluster.remove(name)
        eventually(
            lambda: not any(cluster.inits().values()), within_s=60, what="the containers are gone"
        )
        rounds.append(Round(created - began, scaled - created, time.monotonic() - removing))
    return rounds


def figures_of(replicas: int, rounds: list[Round]) -> list[Figure]:
    of = f"{replicas}, median of {ROUNDS}"
    return [
        Figure(f"service create of {of}", median(each.create for each in rounds), "s"),
        Figure(f"service scale to 0 from {of}", median(each.scale for each in rounds), "s"),
        Figure(f"service rm of {of}", median(each.remove for each in rounds), "s"),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="estiba-bench-") as folder:
        cluster = DevCluster(Path(folder) / "dev")
        try:
            began = time.monotonic()
            cluster.up()
            figures = [Figure("dev up to three nodes ready", time.monotonic() - began, "s")]
            push_sample(cluster)
            cluster.create("warm-up", replicas=3)
            cluster.remove("warm-up")
            eventually(
                lambda: not any(cluster.inits().values()), within_s=60, what="the node is empty"
            )
            figures += memory(cluster, "no containers")
            figures += idle(cluster, "no containers")
            for replicas in REPLICAS:
                figures += figures_of(replicas, lives(cluster, replicas))
            cluster.create("bench", replicas=50)
            figures += memory(cluster, "50 containers")
            figures += idle(cluster, "50 containers")
        finally:
            cluster.down()
    tell(
        "e2e",
        figures,
        {"etcd": version_of("etcd", "--version"), "registry": version_of("docker-registry", "-v")},
    )


if __name__ == "__main__":
    main()
