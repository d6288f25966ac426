"""What is wrong is refused in one sentence that names it, and leaves nothing half-made."""

from pathlib import Path

import pytest

from tests.support.dev import IMAGE, DevCluster
from tests.support.waiting import eventually


def refused(cluster: DevCluster, *words: str, stdin: str | None = None) -> str:
    said = cluster.run(*words, stdin=stdin)
    assert said.code != 0
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


def reason(cluster: DevCluster, service: str) -> str:
    """Return what the first task says of itself."""
    tasks = cluster.tasks(service)
    if not tasks:
        return ""
    status = tasks[0].get("status", {})
    notes = tasks[0].get("notes", [])
    if not tasks[0].get("node_id"):
        return str(notes[-1]["message"]) if notes else ""
    return str(status.get("message", "")) if status.get("state") == "TASK_STATE_WAITING" else ""


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("registry.estiba:5000/no-such-image", "no-such-image"),
        ("127.0.0.1:1/down", "127.0.0.1:1"),
        (f"{IMAGE}@sha256:{'0' * 64}", "sha256:0000"),
    ],
)
def test_an_image_that_cannot_be_had_is_named(
    cluster: DevCluster, service: str, image: str, words: str
) -> None:
    said = refused(
        cluster, "service", "create", "--timeout", "8s", "--name", service, "--replicas", "1", image
    )
    assert words in said
    assert words in reason(cluster, service)
    assert sum(len(pids) for pids in cluster.inits().values()) == 0


def test_a_command_that_does_not_exist_is_named(cluster: DevCluster, service: str) -> None:
    said = refused(
        cluster,
        *("service", "create", "--timeout", "8s", "--name", service, "--replicas", "1"),
        *(IMAGE, "no-such-command"),
    )
    assert "no-such-command" in said
    eventually(
        lambda: "no-such-command" in reason(cluster, service), within_s=5, what="the status says so"
    )


def test_a_constraint_that_matches_nothing_is_explained(cluster: DevCluster, service: str) -> None:
    said = refused(
        cluster,
        *("service", "create", "--timeout", "4s", "--name", service),
        *("--constraint", "node.labels.disk==tape", IMAGE),
    )
    assert "node.labels.disk" in said
    assert "3 of 3" in reason(cluster, service)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit-memory", "1k"], "memory"),
        (["--limit-cpu", "0.0001"], "cpu"),
        (["--limit-memory", "lots"], "--limit-memory"),
        (["--replicas", "-1"], "--replicas"),
        (["--constraint", "node.color ~ red"], "constraint"),
        (["--env", "=x"], "env"),
        (["--stop-signal", "SIGNOTHING"], "SIGNOTHING"),
        (["--no-such-flag", "1"], "--no-such-flag"),
    ],
)
def test_a_faulty_option_is_named_and_nothing_is_created(
    cluster: DevCluster, options: list[str], words: str
) -> None:
    said = refused(cluster, "service", "create", "--name", "faulty", *options, IMAGE)
    assert words.lower() in said.lower()
    assert "faulty" not in cluster.estiba("service", "ls", "-q")


def test_a_name_that_is_taken_is_refused(cluster: DevCluster, service: str) -> None:
    cluster.create(service, replicas=1)
    said = refused(cluster, "service", "create", "--name", service, IMAGE)
    assert service in said
    assert "exists" in said


def test_a_file_with_an_unknown_key_is_refused_by_its_place(
    cluster: DevCluster, tmp_path: Path
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("metadata: {name: bad}\nspec: {template: {container: {imagge: x}}}\n")
    said = refused(cluster, "apply", "-f", str(file))
    assert "imagge" in said
    assert refused(cluster, "apply", "-f", str(tmp_path / "absent.yaml")).count("absent.yaml") == 1
    assert "yaml" in refused(cluster, "apply", "-f", "-", stdin="{[").lower()


def test_an_unknown_service_is_named(cluster: DevCluster) -> None:
    for words in (("ps",), ("inspect",), ("rm",), ("logs",)):
        assert "nothing-here" in refused(cluster, "service", *words, "nothing-here")
    assert "nothing-here" in refused(cluster, "service", "scale", "nothing-here=2")


def test_a_ready_node_is_removed_only_by_force(cluster: DevCluster) -> None:
    said = refused(cluster, "node", "rm", "n1")
    assert "--force" in said or "force" in said


def test_an_update_rolls_one_replica_at_a_time_and_a_failing_one_stops_it(
    cluster: DevCluster, service: str
) -> None:
    cluster.create(service)
    cluster.estiba("service", "update", "--env-add", "COLOUR=blue", service)
    assert {task["template_generation"] for task in cluster.running(service)} == {"2"}

    said = refused(
        cluster, "service", "update", "--timeout", "10s", "--args", "no-such-command", service
    )

    assert "no-such-command" in said
    assert len(cluster.running(service)) == 2, "only one replica was risked"
