"""What is asked for a container is what it gets: read inside it, and from the kernel's files."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import cgroups
from tests.support.dev import BIN, IMAGE, DevCluster
from tests.support.waiting import eventually

TELL = "id; echo dir $(pwd); echo host $(hostname); echo env $COLOUR; exec sleep 1000"


def test_user_folder_host_name_and_environment_are_as_asked(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(
        service,
        *("--user", "app", "--workdir", "/srv/not/there/yet", "--hostname", "boat"),
        *("--env", "COLOUR=blue", "--label", "tier=front"),
        replicas=1,
        command=["sh", "-c", TELL],
    )

    def told() -> list[str]:
        said = cluster.estiba("service", "logs", service).splitlines()
        return said if len(said) == 4 else []

    said = eventually(told, within_s=10, what="the container has told four things")
    assert [line.partition(" | ")[2] for line in said] == [
        "uid=1000(app) gid=1000(app)",
        "dir /srv/not/there/yet",
        "host boat",
        "env blue",
    ]
    (found,) = json.loads(cluster.estiba("service", "inspect", service))
    assert found["metadata"]["labels"] == {"tier": "front"}


def test_limits_are_what_the_kernel_has(cluster: DevCluster, service: str) -> None:
    cluster.create(
        service,
        *("--limit-memory", "32m", "--limit-cpu", "0.25", "--limit-pids", "7"),
        replicas=1,
    )
    (pid,) = cluster.pids(service).values()
    memory, cpu, pids = (cgroups.folder_of_process(pid, name) for name in ("memory", "cpu", "pids"))
    assert int((memory / cgroups.MEMORY_LIMIT).read_text()) == 32 * 2**20
    quota_us, period_us = cgroups.cpu_quota(cpu)
    assert quota_us == period_us // 4
    assert int((pids / "pids.max").read_text()) == 7


# ------------------------------------------------------------------------------------------- stops


def ended(cluster: DevCluster, service: str) -> dict[str, Any]:
    """Return the last run of the only task there is, once the task was stopped."""
    (task,) = cluster.tasks(service)
    assert task["status"]["state"] == "TASK_STATE_SHUTDOWN"
    last: dict[str, Any] = task["status"]["last_run"]
    return last


def test_the_stop_signal_is_the_one_asked_for_and_the_exit_code_is_told(
    cluster: DevCluster, service: str
) -> None:
    command = "trap 'echo asked to end; exit 3' USR1; echo ready; while :; do sleep 0.1; done"
    cluster.create(service, "--stop-signal", "USR1", replicas=1, command=["sh", "-c", command])
    eventually(
        lambda: "ready" in cluster.estiba("service", "logs", service),
        within_s=10,
        what="the trap is set",
    )

    cluster.estiba("service", "scale", f"{service}=0")

    assert ended(cluster, service)["exit_code"] == 3
    assert "asked to end" in cluster.estiba("service", "logs", service)


def test_a_container_that_will_not_end_is_killed_after_its_grace(
    cluster: DevCluster, service: str
) -> None:
    command = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    cluster.create(service, "--stop-grace-period", "2s", replicas=1, command=["sh", "-c", command])
    eventually(
        lambda: "ready" in cluster.estiba("service", "logs", service),
        within_s=10,
        what="the trap is set",
    )
    asked_at = time.monotonic()
    cluster.estiba("service", "scale", f"{service}=0")
    assert time.monotonic() - asked_at >= 2
    assert ended(cluster, service)["exit_code"] == 128 + signal.SIGKILL


# ------------------------------------------------------------------------------------------- health


def restarted_as_unhealthy(cluster: DevCluster, service: str) -> dict[str, Any]:
    task: dict[str, Any] = cluster.tasks(service)[0]
    last = task.get("status", {}).get("last_run", {})
    again = "unhealthy" in last.get("message", "") and task["status"]["run"] == 2
    return task if again else {}


@pytest.mark.parametrize(
    "check",
    [
        ["--health-cmd", "busybox wget -q -O /dev/null http://127.0.0.1:8080/"],
        ["--health-http", "8080/"],
        ["--health-tcp", "8080"],
    ],
    ids=["command", "http", "tcp"],
)
def test_a_healthy_service_is_said_to_be_and_one_that_stops_serving_is_restarted(
    cluster: DevCluster, service: str, check: list[str]
) -> None:
    # It goes on when its server ends, so only a check can find out.
    command = "trap 'exit 0' TERM; httpd -f -p 8080 -h /www & while :; do sleep 0.1; done"
    cluster.create(
        service,
        *check,
        *("--health-interval", "500ms", "--health-retries", "2", "--health-timeout", "2s"),
        replicas=1,
        command=["sh", "-c", command],
    )
    (task,) = cluster.running(service)
    assert task["status"]["health"] == "HEALTH_HEALTHY"
    assert ", healthy" in cluster.estiba("service", "ps", service)

    _end_server(int(task["status"]["pid"]))

    after = eventually(
        lambda: restarted_as_unhealthy(cluster, service), within_s=20, what="it was restarted"
    )
    assert after["metadata"]["id"] == task["metadata"]["id"]
    assert "2 checks in a row failed" in after["status"]["last_run"]["message"]
    eventually(
        lambda: ", healthy, run 2" in cluster.estiba("service", "ps", service),
        within_s=10,
        what="the second run is healthy",
    )


def _end_server(init: int) -> None:
    """Kill the web server of a container, and not its first process."""
    children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    (server,) = [pid for pid in children if "httpd" in Path(f"/proc/{pid}/comm").read_text()]
    os.kill(int(server), signal.SIGKILL)


# -------------------------------------------------------------------------------------------- logs


def test_output_beyond_its_limit_is_dropped_from_the_front_and_outlives_the_container(
    cluster: DevCluster, service: str
) -> None:
    flood = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; exec sleep 1000"
    spec = {
        "template": {
            "container": {
                "image": IMAGE,
                "args": ["sh", "-c", flood],
                "stop_grace_period": "1s",
            },
            "logs": {"max_size_bytes": "16384", "max_files": 2},
        },
        "replicated": {"replicas": 1},
    }
    text = json.dumps({"metadata": {"name": service}, "spec": spec})
    cluster.estiba("apply", "-f", "-", stdin=text)
    eventually(
        lambda: cluster.estiba("service", "logs", "--tail", "1", service).endswith("line 3000\n"),
        within_s=15,
        what="the last line is there",
    )

    def numbers() -> list[int]:
        said = cluster.estiba("service", "logs", service).splitlines()
        return [int(line.split()[-1]) for line in said]

    kept = numbers()
    assert kept == list(range(kept[0], 3001))
    assert 1 < kept[0] < 2900
    (task,) = cluster.running(service)
    files = list((cluster.folder / "nodes").glob(f"*/state/logs/{task['metadata']['id']}/1.log*"))
    assert 1 <= len(files) <= 2
    assert sum(file.stat().st_size for file in files) <= 2 * (16384 + 4096)

    os.kill(int(task["status"]["pid"]), signal.SIGKILL)
    eventually(
        lambda: cluster.running(service) and cluster.running(service)[0]["status"]["run"] == 2,
        within_s=10,
        what="the second run",
    )
    # Of both runs, the first one's first.
    assert eventually(
        lambda: [n for n in [numbers()] if n[-1] == 3000 and n.count(3000) == 2],
        within_s=10,
        what="both runs' last lines",
    )


def test_logs_can_be_cut_by_number_and_time_and_followed(cluster: DevCluster, service: str) -> None:
    talk = "i=0; while :; do i=$((i+1)); echo out $i; echo err $i >&2; sleep 0.2; done"
    cluster.create(service, replicas=1, command=["sh", "-c", talk])
    eventually(
        lambda: "out 8" in cluster.estiba("service", "logs", service),
        within_s=15,
        what="eight lines are there",
    )
    said = cluster.run("service", "logs", "--tail", "2", "-t", service)
    assert said.code == 0
    assert len(said.out.splitlines()) + len(said.err.splitlines()) == 2
    at, _, rest = (said.out or said.err).splitlines()[0].partition(" ")
    assert at.startswith("20")
    assert at.endswith("Z")
    assert rest.startswith(f"{service}.1 | ")

    everything = cluster.run("service", "logs", service)
    assert all(" | out " in line for line in everything.out.splitlines())
    assert all(" | err " in line for line in everything.err.splitlines())
    later = cluster.estiba("service", "logs", "--since", at, service).splitlines()
    assert len(later) < len(cluster.estiba("service", "logs", service).splitlines())
    assert not any(line.endswith(" | out 1") for line in later)

    (task,) = cluster.running(service)
    by_task = cluster.run("service", "logs", "--tail", "1", task["metadata"]["id"])
    assert by_task.code == 0


def test_followed_logs_go_on_with_the_next_run(cluster: DevCluster, service: str) -> None:
    cluster.create(service, replicas=1, command=["sh", "-c", "echo I am $$; exec sleep 1000"])
    (task,) = cluster.running(service)
    with subprocess.Popen(
        [str(BIN / "estiba"), "service", "logs", "--follow", service],
        env=os.environ | {"ESTIBA_DIR": str(cluster.folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        try:
            assert following.stdout.readline() == f"{service}.1 | I am 1\n"
            os.kill(int(task["status"]["pid"]), signal.SIGKILL)
            assert following.stdout.readline() == f"{service}.1 | I am 1\n"
        finally:
            following.send_signal(signal.SIGINT)
        assert following.wait(timeout=10) == 130
        assert "Traceback" not in following.stderr.read()
