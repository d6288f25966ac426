"""Flags become a spec, and change one."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from controlplane.cli import options, service, spec
from estiba.v1 import types_pb2


def given(command: click.Command, *words: str) -> dict[str, Any]:
    """Return what a command is called with when these words are typed."""
    return command.make_context(command.name, list(words)).params


def created(*words: str) -> types_pb2.ServiceSpec:
    return spec.create(given(service.create, *words, "image"))


def updated(before: types_pb2.ServiceSpec, *words: str) -> types_pb2.ServiceSpec:
    after = types_pb2.ServiceSpec()
    after.CopyFrom(before)
    spec.update(after, given(service.update, *words, "web"))
    return after


def test_a_bare_image_is_one_replica_without_limits() -> None:
    made = created()
    assert made.template.container.image == "image"
    assert made.replicated.replicas == 1
    assert not made.template.HasField("resources")
    assert not made.template.container.HasField("health")


def test_options_after_the_image_belong_to_the_command() -> None:
    found = given(service.create, "--replicas", "2", "image", "ls", "--name", "x", "-l")
    assert found["command"] == ("ls", "--name", "x", "-l")
    assert found["name"] is None
    assert spec.create(found).template.container.args == ["ls", "--name", "x", "-l"]


def test_every_flag_of_create_reaches_its_field() -> None:
    made = created(
        *("--replicas", "0", "--entrypoint", "sh -c 'a b'", "--user", "1:2", "--workdir", "/w"),
        *("--hostname", "h", "--stop-signal", "INT", "--stop-grace-period", "1m30s"),
        *("--limit-cpu", "0.5", "--limit-memory", "64m", "--limit-pids", "50"),
        *("--reserve-cpu", "0.25", "--reserve-memory", "32m"),
        *("--constraint", "node.id!=x", "--constraint", "node.labels.disk == ssd"),
        *("--health-cmd", "true", "--health-interval", "250ms", "--health-timeout", "1s"),
        *("--health-retries", "2", "--health-start-period", "3s"),
    )
    container, resources = made.template.container, made.template.resources
    assert made.replicated.replicas == 0
    assert made.HasField("replicated")
    assert container.command == ["sh", "-c", "a b"]
    assert (container.user, container.workdir) == ("1:2", "/w")
    assert (container.hostname, container.stop_signal) == ("h", "INT")
    assert container.stop_grace_period.ToMilliseconds() == 90_000
    limits = resources.limits
    assert (limits.nano_cpus, limits.memory_bytes, limits.pids) == (500_000_000, 64 * 2**20, 50)
    reserved = resources.reservations
    assert (reserved.nano_cpus, reserved.memory_bytes) == (250_000_000, 32 * 2**20)
    assert made.placement.constraints == ["node.id!=x", "node.labels.disk == ssd"]
    assert container.health.exec.command == ["/bin/sh", "-c", "true"]
    assert container.health.interval.ToMilliseconds() == 250
    assert container.health.timeout.ToMilliseconds() == 1000
    assert container.health.retries == 2
    assert container.health.start_period.ToMilliseconds() == 3000


@pytest.mark.parametrize(
    ("word", "port", "path"),
    [("8080", 8080, "/"), ("80/", 80, "/"), ("8080/a/b?c", 8080, "/a/b?c")],
)
def test_an_http_check_is_a_port_and_a_path(word: str, port: int, path: str) -> None:
    http = created("--health-http", word).template.container.health.http
    assert (http.port, http.path) == (port, path)


def test_a_variable_without_a_value_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLOUR", "blue=ish")
    made = created("-e", "COLOUR", "-e", "A=1", "-e", "A=2")
    assert made.template.container.env == ["COLOUR=blue=ish", "A=2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit-memory", "lots"], "--limit-memory"),
        (["--limit-cpu", "many"], "--limit-cpu"),
        (["--stop-grace-period", "soon"], "--stop-grace-period"),
        (["--env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["--env", "=x"], "--env"),
        (["--label", "novalue"], "--label"),
        (["--health-http", "x/y"], "--health-http"),
        (["--health-tcp", "70000"], "--health-tcp"),
        (["--replicas", "-1"], "--replicas"),
        (["--health-cmd", "a", "--health-tcp", "1"], "--health-tcp"),
        (["--health-retries", "1"], "--health-retries"),
    ],
)
def test_a_faulty_flag_is_a_usage_error_that_names_it(words: list[str], said: str) -> None:
    result = CliRunner().invoke(service.create, [*words, "image"])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_an_update_without_flags_changes_nothing() -> None:
    before = created("--limit-cpu", "1", "-e", "A=1", "--health-tcp", "80", "--constraint", "a==b")
    assert updated(before) == before


def test_an_update_keeps_what_it_does_not_name_also_fields_it_does_not_know() -> None:
    before = created("--limit-cpu", "1")
    unknown = b"\xfa\x07\x03new"
    before.MergeFromString(unknown)
    after = updated(before, "--limit-memory", "1g")
    assert unknown in after.SerializeToString()
    assert after.template.resources.limits.nano_cpus == 1_000_000_000
    assert after.template.resources.limits.memory_bytes == 2**30


def test_an_update_adds_and_removes_variables_and_constraints() -> None:
    before = created("-e", "A=1", "-e", "B=2", "--constraint", "node.id == x")
    after = updated(
        before,
        *("--env-add", "C=3", "--env-add", "A=9", "--env-rm", "B"),
        *("--constraint-rm", "node.id==x", "--constraint-add", "node.hostname != n1"),
    )
    assert after.template.container.env == ["A=9", "C=3"]
    assert after.placement.constraints == ["node.hostname != n1"]
    assert updated(after, "--constraint-add", "node.hostname!=n1") == after


def test_an_update_replaces_image_arguments_and_check() -> None:
    before = created("--health-tcp", "80", "--health-retries", "7")
    after = updated(before, "--image", "new:2", "--args", "serve --port 1", "--health-http", "1")
    container = after.template.container
    assert (container.image, list(container.args)) == ("new:2", ["serve", "--port", "1"])
    assert container.health.WhichOneof("kind") == "http"
    assert container.health.retries == 7
    assert not updated(after, "--no-healthcheck").template.container.HasField("health")


def test_dropping_the_check_and_setting_one_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="--no-healthcheck"):
        updated(created(), "--no-healthcheck", "--health-tcp", "1")


def test_labels_are_added_and_removed() -> None:
    assert spec.change_labels({"a": "1", "b": "2"}, [("c", "3"), ("a", "9")], ["b"]) == {
        "a": "9",
        "c": "3",
    }


def test_the_default_of_every_waiting_command_is_five_minutes() -> None:
    assert options.DEFAULT_TIMEOUT == "5m"
    assert given(service.scale, "web=1")["timeout"] == 300_000_000
