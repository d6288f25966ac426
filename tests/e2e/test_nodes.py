"""A node that is cut off, one that is drained, and a service scaled up and down to nothing."""

import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.dev import IMAGE, DevCluster
from tests.support.footprint import Footprint
from tests.support.waiting import eventually


def node_state(cluster: DevCluster, hostname: str) -> str:
    nodes = cluster.json("node", "ls")
    (node,) = [node for node in nodes if node["metadata"]["name"] == hostname]
    return str(node["status"].get("state", "NODE_STATE_UNKNOWN"))


def inits(cluster: DevCluster) -> int:
    return sum(len(pids) for pids in cluster.inits().values())


def test_tasks_of_a_node_that_is_cut_off_run_elsewhere_within_ten_seconds_and_once_after_its_return(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(service)
    others = inits(cluster) - 3
    cluster.cut("n3")
    cut_at = time.monotonic()
    try:

        def elsewhere() -> bool:
            nodes = [task["node_id"] for task in cluster.running(service)]
            return len(nodes) == 3 and node_id(cluster, "n3") not in nodes

        eventually(elsewhere, within_s=15, what="three run on the two nodes left")
        assert time.monotonic() - cut_at < 10
        # The node itself goes on: its container still runs, unseen.
        assert inits(cluster) == others + 4
        said = cluster.run("service", "logs", "--tail", "1", service)
        assert said.code == 0
        assert "warning: node n3 " in said.err, "what is missing is said, the rest is shown"
        assert node_state(cluster, "n3") == "NODE_STATE_DOWN"
    finally:
        cluster.heal("n3")
    eventually(
        lambda: node_state(cluster, "n3") == "NODE_STATE_READY", within_s=10, what="n3 is back"
    )
    eventually(lambda: inits(cluster) == others + 3, within_s=5, what="one container for each slot")
    slots = [task["slot"] for task in cluster.running(service)]
    assert sorted(slots) == [1, 2, 3]


def node_id(cluster: DevCluster, hostname: str) -> str:
    ids = (node["id"] for node in cluster.described["nodes"] if node["hostname"] == hostname)
    return str(next(ids))


def test_draining_a_node_moves_its_tasks(cluster: DevCluster, service: str) -> None:
    cluster.create(service)
    cluster.estiba("node", "update", "--availability", "drain", "n2")
    try:

        def moved() -> bool:
            nodes = [task["node_id"] for task in cluster.running(service)]
            return len(nodes) == 3 and node_id(cluster, "n2") not in nodes

        eventually(moved, within_s=30, what="nothing of the service is left on n2")
    finally:
        cluster.estiba("node", "update", "--availability", "active", "n2")


def test_a_paused_node_keeps_its_tasks_and_is_given_none(cluster: DevCluster, service: str) -> None:
    cluster.create(service)
    before = cluster.pids(service)
    cluster.estiba("node", "update", "--availability", "pause", "n2")
    try:
        cluster.estiba("service", "scale", f"{service}=7")
        assert before.items() <= cluster.pids(service).items()
        nodes = [task["node_id"] for task in cluster.running(service)]
        assert nodes.count(node_id(cluster, "n2")) == 1
    finally:
        cluster.estiba("node", "update", "--availability", "active", "n2")


def test_a_label_that_a_node_gets_lets_a_pending_task_run_there(
    cluster: DevCluster, service: str
) -> None:
    cluster.estiba(
        *("service", "create", "--detach", "--name", service),
        *("--constraint", "node.labels.deck==upper", IMAGE),
    )

    def pending() -> bool:
        tasks = cluster.tasks(service)
        return bool(tasks) and not tasks[0].get("node_id")

    eventually(pending, within_s=10, what="the task is pending")
    assert "pending" in cluster.estiba("service", "ps", service)
    cluster.estiba("node", "update", "--label-add", "deck=upper", "n2")
    try:
        cluster.estiba("service", "scale", f"{service}=2", timeout_s=30)
        assert {task["node_id"] for task in cluster.running(service)} == {node_id(cluster, "n2")}
    finally:
        cluster.estiba("node", "update", "--label-rm", "deck", "n2")


def test_scaling_to_thirty_and_to_nothing_makes_exactly_as_many_and_leaves_nothing(
    cluster: DevCluster, service: str
) -> None:
    others = inits(cluster)
    # A first life, so that what a node makes once (its bridge) is there before the look.
    cluster.create(service)
    assert inits(cluster) == others + 3
    cluster.estiba("service", "scale", f"{service}=0")
    eventually(lambda: inits(cluster) == others, within_s=10, what="no container is left")
    before = {node: _node_links(cluster, node) for node in ("n1", "n2", "n3")}
    footprint = Footprint.take()

    for wanted in (3, 30):
        cluster.estiba("service", "scale", f"{service}={wanted}")
        assert inits(cluster) == others + wanted
        assert len(cluster.running(service)) == wanted
    cluster.estiba("service", "scale", f"{service}=0")

    eventually(lambda: inits(cluster) == others, within_s=10, what="no container is left")
    eventually(
        lambda: not footprint.left_behind(), within_s=10, what="no mount, cgroup or namespace left"
    )
    eventually(
        lambda: {node: _node_links(cluster, node) for node in before} == before,
        within_s=10,
        what="no interface is left on any node",
    )


def _node_links(cluster: DevCluster, node: str) -> list[str]:
    agent = cluster.pid(f"{node}-agent")
    shown = subprocess.run(
        ["nsenter", f"--net=/proc/{agent}/ns/net", "ip", "-br", "link"],
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(line.split()[0] for line in shown.stdout.splitlines())


def test_containers_are_spread_and_reach_a_server_beyond_the_fabric(
    cluster: DevCluster, service: str
) -> None:
    with greeting_server(_address_of_this_machine()) as (address, port):
        cluster.create(
            service, command=["sh", "-c", f"nc {address} {port} </dev/null; exec sleep 1000"]
        )
        eventually(
            lambda: cluster.estiba("service", "logs", service).count("hello from beyond") == 3,
            within_s=15,
            what="every container got an answer",
        )


@contextmanager
def greeting_server(address: str) -> Iterator[tuple[str, int]]:
    """Serve a greeting to whoever connects to this machine's own address."""

    class Greet(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"hello from beyond\n")

    with socketserver.ThreadingTCPServer((address, 0), Greet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield address, server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _address_of_this_machine() -> str:
    shown = subprocess.run(
        ["ip", "-br", "-4", "addr", "show", "scope", "global"],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.split()[2].split("/")[0]
