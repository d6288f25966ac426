"""Turn the flags of `service create` and `service update` into a service's spec. Pure.

A flag that was not given leaves what is there. Raises ValueError with a sentence that
names the flags when they do not go together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from controlplane.cli.units import MILLION
from estiba.v1 import types_pb2

Given = Mapping[str, Any]

_HEALTH_KINDS = ("health_cmd", "health_http", "health_tcp")
_HEALTH_DETAILS = ("health_interval", "health_timeout", "health_retries", "health_start_period")


def create(given: Given) -> types_pb2.ServiceSpec:
    """Make a spec of what was given to `service create`."""
    spec = types_pb2.ServiceSpec()
    container = spec.template.container
    container.image = given["image"]
    container.args.extend(given["command"])
    container.env.extend(_last_of_each(given["env"]))
    spec.placement.constraints.extend(given["constraint"])
    spec.replicated.replicas = 1
    _apply(spec, given)
    return spec


def update(spec: types_pb2.ServiceSpec, given: Given) -> None:
    """Change a spec by what was given to `service update`."""
    container = spec.template.container
    if given["image"] is not None:
        container.image = given["image"]
    if given["args"] is not None:
        container.args[:] = given["args"]
    if given["no_healthcheck"]:
        if any(given[flag] is not None for flag in _HEALTH_KINDS):
            raise ValueError("--no-healthcheck goes with no other --health flag")
        container.ClearField("health")
    removed = set(given["env_rm"])
    kept = [variable for variable in container.env if variable.split("=", 1)[0] not in removed]
    container.env[:] = _last_of_each([*kept, *given["env_add"]])
    dropped = {_squeezed(constraint) for constraint in given["constraint_rm"]}
    constraints = [c for c in spec.placement.constraints if _squeezed(c) not in dropped]
    present = {_squeezed(constraint) for constraint in constraints}
    constraints += [c for c in given["constraint_add"] if _squeezed(c) not in present]
    spec.placement.constraints[:] = constraints
    _apply(spec, given)


def change_labels(
    labels: Mapping[str, str], added: Iterable[tuple[str, str]], removed: Iterable[str]
) -> dict[str, str]:
    dropped = set(removed)
    return {key: value for key, value in labels.items() if key not in dropped} | dict(added)


def _squeezed(constraint: str) -> str:
    """Return a constraint without the spaces that mean nothing."""
    return "".join(constraint.split())


def _last_of_each(variables: Iterable[str]) -> list[str]:
    """Keep the last value of each variable, at the place of the first."""
    found: dict[str, str] = {}
    for variable in variables:
        found[variable.split("=", 1)[0]] = variable
    return list(found.values())


def _apply(spec: types_pb2.ServiceSpec, given: Given) -> None:
    """Set what the two commands have flags of one name for."""
    container, resources = spec.template.container, spec.template.resources
    setters: dict[str, Callable[[Any], None]] = {
        "replicas": lambda value: setattr(spec.replicated, "replicas", value),
        "user": lambda value: setattr(container, "user", value),
        "workdir": lambda value: setattr(container, "workdir", value),
        "hostname": lambda value: setattr(container, "hostname", value),
        "stop_signal": lambda value: setattr(container, "stop_signal", value),
        "stop_grace_period": lambda us: container.stop_grace_period.CopyFrom(_duration(us)),
        "entrypoint": lambda words: _replace(container.command, words),
        "limit_cpu": lambda value: setattr(resources.limits, "nano_cpus", value),
        "limit_memory": lambda value: setattr(resources.limits, "memory_bytes", value),
        "limit_pids": lambda value: setattr(resources.limits, "pids", value),
        "reserve_cpu": lambda value: setattr(resources.reservations, "nano_cpus", value),
        "reserve_memory": lambda value: setattr(resources.reservations, "memory_bytes", value),
    }
    for name, set_value in setters.items():
        if given[name] is not None:
            set_value(given[name])
    _apply_health(container, given)


def _replace(field: Any, words: Sequence[str]) -> None:
    field[:] = words


def _apply_health(container: types_pb2.ContainerSpec, given: Given) -> None:
    kinds = [kind for kind in _HEALTH_KINDS if given[kind] is not None]
    if len(kinds) > 1:
        raise ValueError(f"{_flag(kinds[0])} and {_flag(kinds[1])} do not go together: choose one")
    details = [detail for detail in _HEALTH_DETAILS if given[detail] is not None]
    if details and not kinds and not container.HasField("health"):
        raise ValueError(
            f"{_flag(details[0])} needs a check: add --health-cmd, --health-http or --health-tcp"
        )
    health = container.health if kinds or details else types_pb2.HealthCheck()
    if given["health_cmd"] is not None:
        health.exec.command[:] = ["/bin/sh", "-c", given["health_cmd"]]
    if given["health_http"] is not None:
        health.http.port, health.http.path = given["health_http"]
    if given["health_tcp"] is not None:
        health.tcp.port = given["health_tcp"]
    for detail in ("interval", "timeout", "start_period"):
        value = given[f"health_{detail}"]
        if value is not None:
            getattr(health, detail).CopyFrom(_duration(value))
    if given["health_retries"] is not None:
        health.retries = given["health_retries"]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _duration(microseconds: int) -> Duration:
    whole, rest = divmod(microseconds, MILLION)
    return Duration(seconds=whole, nanos=rest * 1000)
