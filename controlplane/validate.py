"""Is what a user sends acceptable: every fault at once, each with its field. Pure.

A fault is a (field, sentence) pair; the field is a path of the message's own names, such as
``spec.template.resources.limits.memory_bytes``. Whatever passes can be stored, placed and
handed to a kernel; whether an image or a command exists only a node can tell.
"""

import re
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from google.protobuf.duration_pb2 import Duration

from controlplane.scheduler.amounts import bytes_text, cpus_text
from controlplane.scheduler.constraints import parse_constraint
from estiba.model import DEFAULT_NAMESPACE
from estiba.v1 import types_pb2 as v1
from estiba.wire import duration_s

Fault = tuple[str, str]

MAX_REPLICAS = 50_000
# Service and template are written in one transaction, of which etcd takes 1.5 MiB.
MAX_SPEC_BYTES = 256 * 1024
MAX_LABELS_BYTES = 64 * 1024
MAX_CONSTRAINTS = 50
# The reason of every task that finds no node quotes one.
MAX_CONSTRAINT_LENGTH = 255

# A quota of 1,000 us in a period of 100,000 us: the kernel refuses less (min_cfs_quota_period).
LEAST_NANO_CPUS = 10_000_000
# Less does not even hold a process being started.
LEAST_MEMORY_BYTES = 4 * 1024 * 1024
# Above what any machine has, and low enough that sums over a cluster stay within 64 bits.
MOST_NANO_CPUS = 100_000 * 1_000_000_000
MOST_MEMORY_BYTES = 1 << 50
MOST_PIDS = 1 << 22  # PID_MAX_LIMIT
MOST_DURATION_S = 24 * 3600.0
LEAST_CHECK_S = 0.001
LEAST_LOG_BYTES = 4096
MOST_LOG_FILES = 100
MOST_PORT = 65_535
MOST_SIGNAL = 64
MAX_LABEL_LENGTH = 253
MAX_LABEL_VALUE_LENGTH = 4096

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAME_HELP = "use 1 to 63 small letters, digits and hyphens, a hyphen neither first nor last"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOSTNAME = re.compile(r"(?=.{1,63}$)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_USER = re.compile(r"[^\s:]+(?::[^\s:]+)?")
_LABEL_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")
_ENV_NAME = re.compile(r"[^\s=]+")
_HTTP_PATH = re.compile(r"/[\x21-\x7e]*")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"(?:(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?/)?"
    rf"{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@sha256:[0-9a-f]{64}|@sha512:[0-9a-f]{128})?"
)
_IMAGE_HELP = "write [REGISTRY/]NAME[:TAG][@sha256:DIGEST], the name in small letters"


def validate_service(metadata: v1.Metadata, spec: v1.ServiceSpec) -> list[Fault]:
    """Return what is wrong with a service as a user declares it; [] if nothing is."""
    faults: list[Fault] = []
    _metadata(metadata, faults)
    if spec.ByteSize() > MAX_SPEC_BYTES:
        faults.append(("spec", f"{spec.ByteSize()} bytes, {MAX_SPEC_BYTES} at most"))
    if spec.WhichOneof("mode") is None:
        faults.append(("spec.replicated", "say how many replicas are wanted"))
    elif spec.replicated.replicas > MAX_REPLICAS:
        sentence = f"{spec.replicated.replicas} replicas, {MAX_REPLICAS} at most"
        faults.append(("spec.replicated.replicas", sentence))
    if len(spec.placement.constraints) > MAX_CONSTRAINTS:
        sentence = f"{len(spec.placement.constraints)} constraints, {MAX_CONSTRAINTS} at most"
        faults.append(("spec.placement.constraints", sentence))
    for index, text in enumerate(spec.placement.constraints):
        if len(text) > MAX_CONSTRAINT_LENGTH:
            sentence = f"{len(text)} characters, {MAX_CONSTRAINT_LENGTH} at most"
            faults.append((f"spec.placement.constraints[{index}]", sentence))
            continue
        try:
            parse_constraint(text)
        except ValueError as error:
            faults.append((f"spec.placement.constraints[{index}]", str(error)))
    template = spec.template
    _container(template.container, faults)
    _health(template.container, faults)
    _resources(template.resources, faults)
    _restart(template.restart, faults)
    _logs(template.logs, faults)
    return faults


def validate_node_update(spec: v1.NodeSpec, labels: Mapping[str, str]) -> list[Fault]:
    """Return what is wrong with what an operator wants of a node; [] if nothing is."""
    faults: list[Fault] = []
    if spec.availability not in v1.Availability.values():
        sentence = f"{spec.availability} is not active, pause or drain"
        faults.append(("spec.availability", sentence))
    _labels("labels", labels, faults)
    return faults


def _metadata(metadata: v1.Metadata, faults: list[Fault]) -> None:
    if not metadata.name:
        faults.append(("metadata.name", f"is missing: {_NAME_HELP}"))
    elif not _NAME.fullmatch(metadata.name):
        faults.append(("metadata.name", f"{metadata.name!r} is no name: {_NAME_HELP}"))
    if metadata.id and not _ID.fullmatch(metadata.id):
        sentence = f"{metadata.id!r} is no id: use 1 to 64 letters, digits, hyphens and underscores"
        faults.append(("metadata.id", sentence))
    if metadata.namespace not in ("", DEFAULT_NAMESPACE):
        sentence = f"{metadata.namespace!r} does not exist: there is only {DEFAULT_NAMESPACE!r}"
        faults.append(("metadata.namespace", sentence))
    _labels("metadata.labels", metadata.labels, faults)


def _labels(field: str, labels: Mapping[str, str], faults: list[Fault]) -> None:
    size = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if size > MAX_LABELS_BYTES:
        faults.append((field, f"{size} bytes, {MAX_LABELS_BYTES} at most"))
        return
    for key, value in sorted(labels.items()):
        if not _LABEL_KEY.fullmatch(key) or len(key) > MAX_LABEL_LENGTH:
            sentence = f"{key!r} is no label's name: use letters, digits and . _ / -"
            faults.append((field, sentence))
        elif value.strip() != value or not value.isprintable():
            sentence = f"the value {value!r} has spaces around it, or unprintable characters"
            faults.append((f"{field}[{key}]", sentence))
        elif len(value) > MAX_LABEL_VALUE_LENGTH:
            sentence = f"{len(value)} characters, {MAX_LABEL_VALUE_LENGTH} at most"
            faults.append((f"{field}[{key}]", sentence))


def _container(container: v1.ContainerSpec, faults: list[Fault]) -> None:
    at = "spec.template.container"
    if not container.image:
        faults.append((f"{at}.image", f"is missing: {_IMAGE_HELP}"))
    elif not _IMAGE.fullmatch(container.image):
        sentence = f"{container.image!r} is no image: {_IMAGE_HELP}"
        faults.append((f"{at}.image", sentence))
    _words(f"{at}.command", container.command, faults)
    _words(f"{at}.args", container.args, faults)
    if container.command and not container.command[0]:
        faults.append((f"{at}.command[0]", "is empty: name the program to run"))
    _env(f"{at}.env", container.env, faults)
    if container.user and not _USER.fullmatch(container.user):
        faults.append((f"{at}.user", f"{container.user!r} is no user: write USER or USER:GROUP"))
    if container.workdir and not container.workdir.startswith("/"):
        faults.append((f"{at}.workdir", f"{container.workdir!r} does not start with /"))
    for name, value in (("user", container.user), ("workdir", container.workdir)):
        if "\0" in value:
            faults.append((f"{at}.{name}", "contains a NUL character"))
    if container.hostname and not _HOSTNAME.fullmatch(container.hostname):
        sentence = f"{container.hostname!r} is no host name: use up to 63 letters, digits, - and ."
        faults.append((f"{at}.hostname", sentence))
    _labels(f"{at}.labels", container.labels, faults)
    if container.stop_signal and not _is_signal(container.stop_signal):
        sentence = f"{container.stop_signal!r} is no signal: write SIGTERM, TERM or 15"
        faults.append((f"{at}.stop_signal", sentence))
    _duration(f"{at}.stop_grace_period", container.stop_grace_period, faults)


def _words(field: str, words: Iterable[str], faults: list[Fault]) -> None:
    for index, word in enumerate(words):
        if "\0" in word:
            faults.append((f"{field}[{index}]", "contains a NUL character"))


def _env(field: str, settings: Iterable[str], faults: list[Fault]) -> None:
    _words(field, settings, faults)
    for index, setting in enumerate(settings):
        name, equals, _ = setting.partition("=")
        if not equals or not _ENV_NAME.fullmatch(name):
            sentence = f"{setting!r} is no environment variable: write NAME=VALUE"
            faults.append((f"{field}[{index}]", sentence))


def _health(container: v1.ContainerSpec, faults: list[Fault]) -> None:
    if not container.HasField("health"):
        return
    at = "spec.template.container.health"
    health = container.health
    kind = health.WhichOneof("kind")
    if kind is None:
        faults.append((at, "say how to check: exec, http or tcp"))
    elif kind == "exec":
        _words(f"{at}.exec.command", health.exec.command, faults)
        if not health.exec.command or not health.exec.command[0]:
            faults.append((f"{at}.exec.command", "is empty: name the program to run"))
    else:
        port = health.http.port if kind == "http" else health.tcp.port
        if not 1 <= port <= MOST_PORT:
            faults.append((f"{at}.{kind}.port", f"{port} is no port: use 1 to {MOST_PORT}"))
    if kind == "http" and health.http.path and not _HTTP_PATH.fullmatch(health.http.path):
        sentence = f"{health.http.path!r} is no path: start with /, without spaces"
        faults.append((f"{at}.http.path", sentence))
    for name in ("interval", "timeout"):
        if health.HasField(name):
            length: Duration = getattr(health, name)
            _duration(f"{at}.{name}", length, faults, least_s=LEAST_CHECK_S)
    _duration(f"{at}.start_period", health.start_period, faults)


def _resources(resources: v1.Resources, faults: list[Fault]) -> None:
    at = "spec.template.resources"
    limits, reserved = resources.limits, resources.reservations
    cpus = _Range(LEAST_NANO_CPUS, MOST_NANO_CPUS, cpus_text)
    memory = _Range(LEAST_MEMORY_BYTES, MOST_MEMORY_BYTES, bytes_text)
    _amount(f"{at}.limits.nano_cpus", limits.nano_cpus, cpus, faults)
    _amount(f"{at}.limits.memory_bytes", limits.memory_bytes, memory, faults)
    _amount(f"{at}.limits.pids", limits.pids, _Range(1, MOST_PIDS, str), faults)
    field = f"{at}.reservations.nano_cpus"
    _amount(field, reserved.nano_cpus, replace(cpus, least=1), faults)
    _within(field, reserved.nano_cpus, limits.nano_cpus, cpus_text, faults)
    field = f"{at}.reservations.memory_bytes"
    _amount(field, reserved.memory_bytes, replace(memory, least=1), faults)
    _within(field, reserved.memory_bytes, limits.memory_bytes, bytes_text, faults)


@dataclass(frozen=True, slots=True)
class _Range:
    least: int
    most: int
    text: Callable[[int], str]


def _amount(field: str, amount: int, allowed: _Range, faults: list[Fault]) -> None:
    """Check an amount of which 0 means: not said."""
    text = allowed.text
    if amount < 0:
        faults.append((field, f"{amount} is negative"))
    elif 0 < amount < allowed.least:
        sentence = f"{text(amount)} is below the least that works, {text(allowed.least)}"
        faults.append((field, sentence))
    elif amount > allowed.most:
        sentence = f"{text(amount)} is above the most there can be, {text(allowed.most)}"
        faults.append((field, sentence))


def _within(
    field: str, reserved: int, limit: int, text: Callable[[int], str], faults: list[Fault]
) -> None:
    if 0 < limit < reserved:
        faults.append((field, f"{text(reserved)} is above the limit, {text(limit)}"))


def _restart(restart: v1.RestartPolicy, faults: list[Fault]) -> None:
    at = "spec.template.restart"
    _duration(f"{at}.initial_delay", restart.initial_delay, faults)
    _duration(f"{at}.max_delay", restart.max_delay, faults)
    both = restart.HasField("initial_delay") and restart.HasField("max_delay")
    if both and duration_s(restart.initial_delay) > duration_s(restart.max_delay):
        faults.append((f"{at}.initial_delay", "is longer than max_delay"))


def _logs(logs: v1.LogSettings, faults: list[Fault]) -> None:
    at = "spec.template.logs"
    size = _Range(LEAST_LOG_BYTES, MOST_MEMORY_BYTES, bytes_text)
    _amount(f"{at}.max_size_bytes", logs.max_size_bytes, size, faults)
    if logs.max_files > MOST_LOG_FILES:
        faults.append((f"{at}.max_files", f"{logs.max_files} files, {MOST_LOG_FILES} at most"))


def _duration(field: str, length: Duration, faults: list[Fault], *, least_s: float = 0.0) -> None:
    length_s = duration_s(length)
    if length_s < 0:
        faults.append((field, f"{length_s:g} s is negative"))
    elif length_s < least_s:
        faults.append((field, f"{length_s:g} s is below the least that works, {least_s:g} s"))
    elif length_s > MOST_DURATION_S:
        faults.append((field, f"{length_s:g} s is more than a day"))


def _is_signal(text: str) -> bool:
    if re.fullmatch(r"[0-9]{1,3}", text):
        return 1 <= int(text) <= MOST_SIGNAL
    name = text.upper()
    return (name if name.startswith("SIG") else f"SIG{name}") in signal.Signals.__members__
