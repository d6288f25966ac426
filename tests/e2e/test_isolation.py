"""What a container sees and may use, asked from inside it and read back from the kernel."""

from pathlib import Path

from tests.support import cgroups
from tests.support.dev import IMAGE, DevCluster
from tests.support.waiting import eventually

LOOK_AROUND = "echo pid $$; hostname; ls /sys/class/net; ps -o pid,comm; echo done; exec sleep 1000"


def test_three_replicas_run_on_three_nodes_each_alone_in_its_namespaces(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(service, command=["sh", "-c", LOOK_AROUND])

    tasks = cluster.running(service)
    assert sorted(task["slot"] for task in tasks) == [1, 2, 3]
    assert len({task["node_id"] for task in tasks}) == 3
    namespaces = [
        {kind: Path(f"/proc/{task['status']['pid']}/ns/{kind}").readlink() for kind in NAMESPACES}
        for task in tasks
    ]
    own = {kind: Path(f"/proc/self/ns/{kind}").readlink() for kind in NAMESPACES}
    for kind in NAMESPACES:
        assert len({str(each[kind]) for each in [*namespaces, own]}) == 4, kind

    def lines() -> list[str]:
        said = cluster.estiba("service", "logs", service).splitlines()
        return said if sum(line.endswith("done") for line in said) == 3 else []

    said = eventually(lines, within_s=10, what="three replicas have told what they see")
    for slot in (1, 2, 3):
        mine = [line.split("| ", 1)[1] for line in said if f"{service}.{slot}" in line]
        assert "pid 1" in mine
        assert f"{service}.{slot}" in mine
        assert "lo" in mine
        assert "eth0" in mine
        seen = [line.split() for line in mine if line.split()[0].isdigit()]
        assert sorted(command for _, command in seen) == ["ps", "sh"], "only its own processes"


NAMESPACES = ("pid", "net", "mnt", "ipc", "uts", "cgroup")


def test_a_container_beyond_its_memory_limit_is_killed_and_that_is_said(
    cluster: DevCluster, service: str
) -> None:
    # tail keeps its input in memory until the first line ends, which it never does.
    cluster.estiba(
        *("service", "create", "--detach", "--name", service, "--limit-memory", "32m"),
        *(IMAGE, "tail", "/dev/zero"),
    )

    def killed() -> str:
        task = cluster.tasks(service)[0]
        last = task.get("status", {}).get("last_run", {})
        return last.get("message", "") if last.get("oom_killed") else ""

    assert "memory" in eventually(killed, within_s=20, what="an out-of-memory kill is reported")
    assert cluster.tasks(service)[0]["status"]["last_run"]["exit_code"] == 137
    assert "out of memory: limit 32" in cluster.estiba("service", "ps", service)


def test_a_cpu_limit_throttles(cluster: DevCluster, service: str) -> None:
    cluster.create(
        service, "--limit-cpu", "0.2", replicas=1, command=["sh", "-c", "while :; do :; done"]
    )
    (pid,) = cluster.pids(service).values()
    group = cgroups.folder_of_process(pid, "cpu")

    def throttled() -> bool:
        stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        return int(stat["nr_throttled"]) > 10

    eventually(throttled, within_s=10, what="the kernel counts throttled periods")
    stat = group / "cpu.stat"
    before, periods_before = cgroups.cpu_used_ns(pid), cgroups.field(stat, "nr_periods")
    eventually(
        lambda: cgroups.field(stat, "nr_periods") >= periods_before + 20,
        within_s=20,
        what="twenty periods pass",
    )
    used_ns = cgroups.cpu_used_ns(pid) - before
    # A period is 100 ms: 20 ms of every one, and a little for the measurement itself.
    passed = cgroups.field(stat, "nr_periods") - periods_before
    assert used_ns <= (passed + 2) * 20_000_000 * 1.2
