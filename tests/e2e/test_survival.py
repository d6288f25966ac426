"""Killing what runs the containers, and the containers: what survives, and what is said after."""

import os
import signal
import time

import pytest

from tests.support.dev import DevCluster, alive, start_time
from tests.support.waiting import eventually

COUNTING = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"


def identities(cluster: DevCluster, service: str) -> dict[str, tuple[int, int]]:
    return {task: (pid, start_time(pid)) for task, pid in cluster.pids(service).items()}


def node_of(cluster: DevCluster, task: dict[str, object]) -> str:
    return next(
        str(node["hostname"])
        for node in cluster.described["nodes"]
        if node["id"] == task["node_id"]
    )


def test_a_killed_container_runs_again_in_the_same_task_and_its_logs_stay(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(
        service, replicas=1, command=["sh", "-c", "echo first words of $(date +%s%N); sleep 1000"]
    )
    (task,) = cluster.running(service)
    eventually(
        lambda: "first words" in cluster.estiba("service", "logs", service),
        within_s=10,
        what="the first run's words are in the logs",
    )
    words = cluster.estiba("service", "logs", service)

    os.kill(int(task["status"]["pid"]), signal.SIGKILL)

    def next_run() -> bool:
        tasks = cluster.running(service)
        return bool(tasks) and tasks[0]["status"]["run"] == 2

    eventually(next_run, within_s=10, what="the second run of the same task")
    (after,) = cluster.running(service)
    assert after["metadata"]["id"] == task["metadata"]["id"]
    assert after["status"]["last_run"]["exit_code"] == 128 + signal.SIGKILL
    assert words.strip() in cluster.estiba("service", "logs", service)


@pytest.mark.parametrize("program", ["agent", "log-pump", "launcher"])
def test_a_killed_program_of_a_node_restarts_no_container(
    cluster: DevCluster, service: str, program: str
) -> None:
    cluster.create(service, command=["sh", "-c", COUNTING])
    before = identities(cluster, service)
    assert len(before) == 3

    for node in ("n1", "n2", "n3"):
        name = f"{node}-{program}"
        cluster.restarted(name, cluster.kill(name))

    eventually(
        lambda: identities(cluster, service) == before,
        within_s=20,
        what="the same tasks with the same processes",
    )
    cluster.estiba("service", "scale", f"{service}=4")
    assert before.items() <= identities(cluster, service).items()
    lines = cluster.estiba("service", "logs", service).splitlines()
    for slot in (1, 2, 3):
        numbers = [int(line.split()[-1]) for line in lines if f"{service}.{slot}" in line]
        assert numbers == list(range(1, len(numbers) + 1)), "a line was lost or doubled"


def test_exit_codes_of_containers_that_end_while_the_agent_is_dead_are_right(
    cluster: DevCluster, service: str
) -> None:
    command = ["sh", "-c", "trap 'exit 23' TERM; while :; do sleep 0.1; done"]
    cluster.create(service, replicas=1, command=command)
    (task,) = cluster.running(service)
    agent = f"{node_of(cluster, task)}-agent"
    cluster.estiba("dev", "stop", agent, "--dir", str(cluster.folder))

    os.kill(int(task["status"]["pid"]), signal.SIGTERM)
    eventually(
        lambda: not alive(int(task["status"]["pid"])), within_s=10, what="the container ends"
    )
    cluster.estiba("dev", "start", agent, "--dir", str(cluster.folder))

    def told() -> bool:
        (now,) = cluster.tasks(service)[:1]
        code: int | None = now["status"].get("last_run", {}).get("exit_code")
        return code == 23

    eventually(told, within_s=20, what="exit code 23 is reported")


@pytest.mark.parametrize(
    "victims", [("estibad-1",), ("estibad-2",), ("estibad-1", "estibad-2"), ("etcd",)]
)
def test_killing_the_control_plane_restarts_no_container_and_loses_nothing(
    cluster: DevCluster, service: str, victims: tuple[str, ...]
) -> None:
    cluster.create(service)
    before = identities(cluster, service)

    pids = {name: cluster.kill(name) for name in victims}
    for name, pid in pids.items():
        cluster.restarted(name, pid)

    cluster.estiba("service", "scale", f"{service}=5")
    after = identities(cluster, service)
    assert before.items() <= after.items()
    assert len(after) == 5


def test_with_one_member_dead_changes_go_on_within_ten_seconds_and_no_task_moves(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(service)
    before = identities(cluster, service)
    leader = leading(cluster)
    cluster.estiba("dev", "stop", leader, "--kill", "--dir", str(cluster.folder))
    stopped = time.monotonic()
    try:
        cluster.estiba("service", "scale", f"{service}=4")
        assert time.monotonic() - stopped < 10
        assert before.items() <= identities(cluster, service).items()
    finally:
        cluster.estiba("dev", "start", leader, "--dir", str(cluster.folder))


def test_a_member_stopped_for_twenty_seconds_changes_nothing_when_it_goes_on(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(service)
    before = identities(cluster, service)
    leader = leading(cluster)
    pid = cluster.pid(leader)
    os.kill(pid, signal.SIGSTOP)
    try:
        frozen_until = time.monotonic() + 20
        cluster.estiba("service", "scale", f"{service}=4", timeout_s=60)
        assert leading(cluster) != leader
        assert leader not in serving(cluster), "its agents are elsewhere"
        eventually(
            lambda: time.monotonic() >= frozen_until, within_s=30, what="twenty seconds have passed"
        )
    finally:
        os.kill(pid, signal.SIGCONT)

    cluster.estiba("service", "scale", f"{service}=6")
    assert before.items() <= identities(cluster, service).items()
    assert leading(cluster) != leader
    assert len(identities(cluster, service)) == 6


def serving(cluster: DevCluster) -> set[str]:
    """Return the members that sessions of ready nodes are with."""
    nodes = cluster.json("node", "ls")
    assert all(node["status"]["state"] == "NODE_STATE_READY" for node in nodes)
    return {node["status"]["member_id"] for node in nodes}


def leading(cluster: DevCluster) -> str:
    """Return the program's name of the member that leads."""
    members = cluster.json("info")["members"]
    (leader,) = [member["id"] for member in members if member.get("leader")]
    return str(leader)


def test_a_folder_of_a_killed_agent_holds_no_half_written_file(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(service)
    cluster.restarted("n1-agent", cluster.kill("n1-agent"))
    cluster.estiba("service", "scale", f"{service}=6")

    assert not list((cluster.folder / "nodes").rglob("*.tmp"))
