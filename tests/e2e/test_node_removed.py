"""A node that is removed for good while it runs tasks, in a cluster of its own."""

from tests.e2e.conftest import push_sample
from tests.support.dev import DevCluster
from tests.support.waiting import eventually


def refusals(cluster: DevCluster) -> int:
    return cluster.estiba("dev", "logs", "n2-agent").count("this node was removed")


def test_a_node_removed_by_force_stops_what_it_ran_and_is_refused_when_it_returns(
    second: DevCluster,
) -> None:
    second.up(nodes=2)
    push_sample(second)
    second.create("web", replicas=4)
    assert {node: len(pids) for node, pids in second.inits().items()} == {"n1": 2, "n2": 2}

    assert second.estiba("node", "rm", "--force", "n2") == "n2\n"

    eventually(
        lambda: {node: len(pids) for node, pids in second.inits().items()} == {"n1": 4, "n2": 0},
        within_s=30,
        what="n1 runs all four, n2 has stopped what it ran",
    )
    assert len(second.running("web")) == 4
    refused = refusals(second)
    second.restarted("n2-agent", second.kill("n2-agent"))
    eventually(
        lambda: refusals(second) > refused,
        within_s=20,
        what="the agent that returns is refused, and knows why",
    )
    assert [node["metadata"]["name"] for node in second.json("node", "ls")] == ["n1"]
    said = second.run("node", "inspect", "n2")
    assert said.code == 1
    assert "there is no node n2" in said.err
