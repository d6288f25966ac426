"""A cluster of one's own, brought up and down, also when its programs were killed meanwhile."""

import os
import signal

from tests.e2e.conftest import push_sample
from tests.support.dev import DevCluster, alive
from tests.support.footprint import Footprint


def supervisor(cluster: DevCluster) -> int:
    pid: int = cluster.json("dev", "status")["pid"]
    return pid


def test_down_leaves_the_machine_as_it_was_before_up(
    cluster: DevCluster, second: DevCluster
) -> None:
    before = Footprint.take()
    second.up(nodes=1)
    push_sample(second)
    second.create("web", replicas=2)
    second.down()
    assert before.left_behind() == []
    assert not second.folder.exists()
    assert cluster.json("node", "ls"), "the other cluster goes on"


def test_up_again_changes_nothing_and_starts_what_was_stopped(
    cluster: DevCluster, second: DevCluster
) -> None:
    assert cluster.folder != second.folder
    second.up(nodes=1)
    before = {name: program["pid"] for name, program in second.programs().items()}
    second.up(nodes=1)
    assert {name: program["pid"] for name, program in second.programs().items()} == before

    second.estiba("dev", "stop", "estibad-2")
    assert second.programs()["estibad-2"]["state"] == "stopped"
    second.up(nodes=1)
    assert second.programs()["estibad-2"]["state"] == "running"


def test_a_supervisor_killed_twice_leaves_nothing_and_what_was_declared_stays(
    second: DevCluster,
) -> None:
    before = Footprint.take()
    second.up(nodes=1)
    push_sample(second)
    second.create("web", replicas=2)
    for _ in range(2):
        programs = [program["pid"] for program in second.programs().values()]
        os.kill(supervisor(second), signal.SIGKILL)
        second.up(nodes=1)
        assert not any(alive(pid) for pid in programs)
        second.estiba("service", "scale", "web=2")
        assert len(second.running("web")) == sum(map(len, second.inits().values())) == 2
    os.kill(supervisor(second), signal.SIGKILL)
    second.down()
    second.down()
    assert before.left_behind() == []


def test_down_works_after_every_program_was_killed(second: DevCluster) -> None:
    before = Footprint.take()
    second.up(nodes=1)
    push_sample(second)
    second.create("web", replicas=2)
    victims = [supervisor(second), *(program["pid"] for program in second.programs().values())]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    second.down()
    assert before.left_behind() == []


def test_kept_data_is_there_at_the_next_up(second: DevCluster) -> None:
    second.up(nodes=1)
    push_sample(second)
    second.create("web", replicas=1)
    second.estiba("dev", "down", "--keep")
    said = second.run("service", "ls")
    assert said.code == 1
    assert "estiba dev up" in said.err
    second.up(nodes=1)
    second.estiba("service", "scale", "web=2")


def test_what_does_not_fit_is_refused_in_a_sentence(
    cluster: DevCluster, second: DevCluster
) -> None:
    said = cluster.run("dev", "up", "--nodes", "5")
    assert said.code == 1
    assert "3 nodes, not 5" in said.err
    said = second.run("dev", "status")
    assert said.code == 1
    assert "estiba dev up" in said.err
    said = cluster.run("dev", "stop", "no-such")
    assert said.code == 1
    assert "estibad-1" in said.err
