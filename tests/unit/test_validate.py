"""What a user may declare: every fault is found at once, named by its field."""

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.validate import (
    MAX_REPLICAS,
    MAX_SPEC_BYTES,
    validate_node_update,
    validate_service,
)
from estiba.v1 import types_pb2 as v1

CONTAINER = "spec.template.container"
RESOURCES = "spec.template.resources"


def service() -> v1.Service:
    """Return a service that says everything, and all of it acceptable."""
    container = v1.ContainerSpec(
        image="registry.example:5000/team/app:1.2",
        command=["/bin/app"],
        args=["--flag", ""],
        env=["MODE=a=b", "EMPTY="],
        user="app:users",
        workdir="/srv",
        hostname="web-1.example",
        labels={"team": "a"},
        stop_signal="SIGINT",
        stop_grace_period=Duration(seconds=5),
        health=v1.HealthCheck(
            http=v1.HttpCheck(port=80, path="/healthz?full=1"),
            interval=Duration(seconds=5),
            timeout=Duration(nanos=500_000_000),
            start_period=Duration(),
        ),
    )
    template = v1.TaskTemplate(
        container=container,
        resources=v1.Resources(
            limits=v1.Limits(nano_cpus=10_000_000, memory_bytes=4 << 20, pids=1),
            reservations=v1.Reservations(nano_cpus=1_000, memory_bytes=1024),
        ),
        restart=v1.RestartPolicy(initial_delay=Duration(seconds=1), max_delay=Duration(seconds=9)),
        logs=v1.LogSettings(max_size_bytes=1 << 20, max_files=3),
    )
    spec = v1.ServiceSpec(
        template=template,
        replicated=v1.Replicated(replicas=3),
        placement=v1.Placement(constraints=["node.labels.disk == ssd"]),
    )
    metadata = v1.Metadata(id="b2-x_Y", name="web", labels={"team": "a"}, namespace="default")
    return v1.Service(metadata=metadata, spec=spec)


def faults(message: v1.Service) -> list[tuple[str, str]]:
    return validate_service(message.metadata, message.spec)


def test_a_service_that_says_everything_passes() -> None:
    assert faults(service()) == []


def test_a_service_that_says_only_what_it_must_passes() -> None:
    message = v1.Service()
    message.metadata.name = "web"
    message.spec.template.container.image = "busybox"
    message.spec.replicated.replicas = 0

    assert faults(message) == []


def test_all_faults_are_told_at_once() -> None:
    fields = [field for field, _ in faults(v1.Service())]

    assert fields == ["metadata.name", "spec.replicated", f"{CONTAINER}.image"]


Change = Callable[[v1.Service], object]


def change(path: str, value: object) -> Change:
    """Return a change that sets one field of a service."""

    def apply(message: v1.Service) -> None:
        *parents, last = path.split(".")
        parent: object = message
        for name in parents:
            parent = getattr(parent, name)
        if isinstance(value, list):
            getattr(parent, last)[:] = value
        elif isinstance(value, dict):
            getattr(parent, last).update(value)
        elif isinstance(value, Duration):
            getattr(parent, last).CopyFrom(value)
        else:
            setattr(parent, last, value)

    return apply


@pytest.mark.parametrize(
    ("path", "value", "field", "words"),
    [
        ("metadata.name", "Web", "metadata.name", "'Web' is no name"),
        ("metadata.name", "-web", "metadata.name", "hyphen neither first nor last"),
        ("metadata.name", "w" * 64, "metadata.name", "1 to 63"),
        ("metadata.name", "web\n", "metadata.name", "is no name"),
        ("metadata.id", "a.b", "metadata.id", "'a.b' is no id"),
        ("metadata.namespace", "other", "metadata.namespace", "'other' does not exist"),
        ("metadata.labels", {"": "x"}, "metadata.labels", "'' is no label's name"),
        ("metadata.labels", {"a": " x"}, "metadata.labels[a]", "spaces around it"),
        ("metadata.labels", {"a": "x" * 5000}, "metadata.labels[a]", "4096 at most"),
        (
            "spec.replicated.replicas",
            MAX_REPLICAS + 1,
            "spec.replicated.replicas",
            "50001 replicas, 50000 at most",
        ),
        (
            "spec.placement.constraints",
            ["node.id == a", "node.color ~ red"],
            "spec.placement.constraints[1]",
            "is no constraint",
        ),
        (f"{CONTAINER}.image", "Busybox", f"{CONTAINER}.image", "'Busybox' is no image"),
        (f"{CONTAINER}.image", "a b", f"{CONTAINER}.image", "is no image"),
        (f"{CONTAINER}.image", "app@sha256:1", f"{CONTAINER}.image", "is no image"),
        (f"{CONTAINER}.command", [""], f"{CONTAINER}.command[0]", "name the program"),
        (f"{CONTAINER}.args", ["a", "b\0"], f"{CONTAINER}.args[1]", "NUL"),
        (f"{CONTAINER}.env", ["=x"], f"{CONTAINER}.env[0]", "write NAME=VALUE"),
        (f"{CONTAINER}.env", ["A=1", "B"], f"{CONTAINER}.env[1]", "write NAME=VALUE"),
        (f"{CONTAINER}.user", "a:b:c", f"{CONTAINER}.user", "USER:GROUP"),
        (f"{CONTAINER}.user", "a\0", f"{CONTAINER}.user", "NUL"),
        (f"{CONTAINER}.workdir", "srv", f"{CONTAINER}.workdir", "does not start with /"),
        (f"{CONTAINER}.hostname", "a_b", f"{CONTAINER}.hostname", "'a_b' is no host name"),
        (f"{CONTAINER}.hostname", "a" * 64, f"{CONTAINER}.hostname", "up to 63"),
        (f"{CONTAINER}.labels", {"a b": ""}, f"{CONTAINER}.labels", "is no label's name"),
        (f"{CONTAINER}.stop_signal", "SIGNOTHING", f"{CONTAINER}.stop_signal", "SIGNOTHING"),
        (f"{CONTAINER}.stop_signal", "0", f"{CONTAINER}.stop_signal", "is no signal"),
        (f"{CONTAINER}.stop_signal", "9" * 5000, f"{CONTAINER}.stop_signal", "is no signal"),
        (
            f"{CONTAINER}.stop_grace_period",
            Duration(seconds=-1),
            f"{CONTAINER}.stop_grace_period",
            "-1 s is negative",
        ),
        (
            f"{CONTAINER}.stop_grace_period",
            Duration(seconds=90_000),
            f"{CONTAINER}.stop_grace_period",
            "more than a day",
        ),
        (f"{CONTAINER}.health.http.port", 0, f"{CONTAINER}.health.http.port", "0 is no port"),
        (f"{CONTAINER}.health.tcp.port", 70_000, f"{CONTAINER}.health.tcp.port", "70000"),
        (f"{CONTAINER}.health.http.path", "x", f"{CONTAINER}.health.http.path", "start with /"),
        (
            f"{CONTAINER}.health.exec.command",
            [],
            f"{CONTAINER}.health.exec.command",
            "name the program",
        ),
        (
            f"{CONTAINER}.health.interval",
            Duration(),
            f"{CONTAINER}.health.interval",
            "0 s is below the least that works, 0.001 s",
        ),
        (
            f"{RESOURCES}.limits.memory_bytes",
            1024,
            f"{RESOURCES}.limits.memory_bytes",
            "1 KiB is below the least that works, 4 MiB",
        ),
        (
            f"{RESOURCES}.limits.nano_cpus",
            100_000,
            f"{RESOURCES}.limits.nano_cpus",
            "100000 nano-cpus is below the least that works, 0.01 cpus",
        ),
        (f"{RESOURCES}.limits.pids", -1, f"{RESOURCES}.limits.pids", "-1 is negative"),
        (f"{RESOURCES}.limits.pids", 1 << 40, f"{RESOURCES}.limits.pids", "above the most"),
        (
            f"{RESOURCES}.reservations.memory_bytes",
            1 << 30,
            f"{RESOURCES}.reservations.memory_bytes",
            "1 GiB is above the limit, 4 MiB",
        ),
        (
            f"{RESOURCES}.reservations.nano_cpus",
            1_500_000_000,
            f"{RESOURCES}.reservations.nano_cpus",
            "1.5 cpus is above the limit, 0.01 cpus",
        ),
        (
            "spec.template.restart.initial_delay",
            Duration(seconds=10),
            "spec.template.restart.initial_delay",
            "longer than max_delay",
        ),
        ("spec.template.logs.max_files", 101, "spec.template.logs.max_files", "100 at most"),
        ("spec.template.logs.max_size_bytes", 1, "spec.template.logs.max_size_bytes", "4 KiB"),
    ],
)
def test_a_fault_is_named_by_its_field(path: str, value: object, field: str, words: str) -> None:
    message = service()
    if path.endswith(("exec.command", "tcp.port")) and "health" in path:
        message.spec.template.container.health.exec.SetInParent()
    change(path, value)(message)

    found = faults(message)

    assert [name for name, _ in found] == [field]
    assert words in found[0][1]


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "busybox:1.36",
        "team/app",
        "localhost/app",
        "registry.estiba:5000/sample",
        "[::1]:5000/app:v1",
        f"app@sha256:{'0' * 64}",
        f"docker.io/library/app:1@sha256:{'a' * 64}",
    ],
)
def test_an_image_is_written_as_docker_writes_it(image: str) -> None:
    message = service()
    message.spec.template.container.image = image

    assert faults(message) == []


@pytest.mark.parametrize("text", ["SIGTERM", "TERM", "sigterm", "15", "SIGKILL", "64"])
def test_a_signal_is_a_name_or_a_number(text: str) -> None:
    message = service()
    message.spec.template.container.stop_signal = text

    assert faults(message) == []


def test_a_health_check_without_a_kind_is_refused() -> None:
    message = service()
    message.spec.template.container.health.ClearField("http")

    assert faults(message) == [(f"{CONTAINER}.health", "say how to check: exec, http or tcp")]


def test_a_spec_too_large_for_one_transaction_is_refused() -> None:
    message = service()
    message.spec.template.container.args.append("x" * MAX_SPEC_BYTES)

    ((field, sentence),) = faults(message)

    assert field == "spec"
    assert f"{MAX_SPEC_BYTES} at most" in sentence


def test_a_node_may_be_active_paused_or_drained_and_have_labels() -> None:
    for availability in v1.Availability.values():
        assert validate_node_update(v1.NodeSpec(availability=availability), {"disk": "ssd"}) == []


def test_a_nodes_faults_are_told_at_once() -> None:
    spec = v1.NodeSpec.FromString(b"\x08\x09")

    found = validate_node_update(spec, {"disk\n": "ssd", "ok": " "})

    assert [field for field, _ in found] == ["spec.availability", "labels", "labels[ok]"]


texts = st.text(max_size=8) | st.sampled_from(["web", "A=b", "/x", "9" * 30, "node.id == a"])
durations = st.builds(
    Duration, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)
)
sizes = st.integers(-(2**63), 2**63 - 1)
numbers = st.integers(0, 2**32 - 1)
containers = st.builds(
    v1.ContainerSpec,
    image=texts,
    command=st.lists(texts, max_size=2),
    args=st.lists(texts, max_size=2),
    env=st.lists(texts, max_size=2),
    user=texts,
    workdir=texts,
    hostname=texts,
    labels=st.dictionaries(texts, texts, max_size=2),
    stop_signal=texts,
    stop_grace_period=st.none() | durations,
    health=st.none()
    | st.builds(
        v1.HealthCheck,
        exec=st.none() | st.builds(v1.ExecCheck, command=st.lists(texts, max_size=2)),
        http=st.none() | st.builds(v1.HttpCheck, port=numbers, path=texts),
        interval=st.none() | durations,
        timeout=st.none() | durations,
        retries=numbers,
    ),
)
templates = st.builds(
    v1.TaskTemplate,
    container=containers,
    resources=st.builds(
        v1.Resources,
        limits=st.builds(v1.Limits, nano_cpus=sizes, memory_bytes=sizes, pids=sizes),
        reservations=st.builds(v1.Reservations, nano_cpus=sizes, memory_bytes=sizes),
    ),
    restart=st.builds(v1.RestartPolicy, initial_delay=durations, max_delay=durations),
    logs=st.builds(v1.LogSettings, max_size_bytes=sizes, max_files=numbers),
)
specs = st.builds(
    v1.ServiceSpec,
    template=templates,
    replicated=st.none() | st.builds(v1.Replicated, replicas=numbers),
    placement=st.builds(v1.Placement, constraints=st.lists(texts, max_size=3)),
)
metadatas = st.builds(
    v1.Metadata,
    id=texts,
    name=texts,
    namespace=texts,
    labels=st.dictionaries(texts, texts, max_size=2),
)


@settings(max_examples=200)
@given(metadatas, specs)
def test_no_message_is_too_strange_to_be_judged(
    metadata: v1.Metadata, spec: v1.ServiceSpec
) -> None:
    for field, sentence in validate_service(metadata, spec):
        assert field.split(".")[0] in ("metadata", "spec")
        assert sentence


def test_constraints_and_labels_are_few_and_short_enough_to_be_stored_and_quoted() -> None:
    message = service()
    message.spec.placement.constraints[:] = [f"node.labels.disk == {'x' * 255}"] + ["a == b"] * 50
    message.metadata.labels.update({f"label-{number}": "x" * 4000 for number in range(17)})
    found = dict(faults(message))
    assert found["spec.placement.constraints"] == "51 constraints, 50 at most"
    assert found["spec.placement.constraints[0]"] == "275 characters, 255 at most"
    assert found["metadata.labels"].endswith("bytes, 65536 at most")
    assert validate_node_update(v1.NodeSpec(), {"a": "x" * 70_000})
