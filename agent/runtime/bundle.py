"""Read a container's `config.json` into what the launcher needs of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.kernel import caps
from agent.runtime import limits
from agent.runtime.errors import ContainerError
from agent.runtime.limits import Limits
from agent.runtime.spec import (
    LAYERS_ANNOTATION,
    LOG_ANNOTATION,
    USER_ANNOTATION,
    LogSettings,
)


@dataclass(frozen=True, slots=True)
class MountRequest:
    """One entry of `mounts`."""

    destination: str
    kind: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """One container as its `config.json` describes it."""

    folder: Path
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    capabilities: int
    no_new_privileges: bool
    oom_score_adj: int
    hostname: str
    layers: tuple[str, ...]
    mounts: tuple[MountRequest, ...]
    masked_paths: tuple[str, ...]
    read_only_paths: tuple[str, ...]
    sysctls: Mapping[str, str]
    limits: Limits
    log: LogSettings | None

    @property
    def root(self) -> Path:
        return self.folder / "rootfs"

    @property
    def upper(self) -> Path:
        return self.folder / "upper"

    @property
    def work(self) -> Path:
        return self.folder / "work"


def read_bundle(folder: Path) -> Bundle:
    """Read and check `config.json` in a folder.

    Raises:
        ContainerError: it is absent, malformed, or asks for what is not supported.
    """
    path = folder / "config.json"
    try:
        return _parse(folder, json.loads(path.read_bytes()))
    except OSError as error:
        raise ContainerError("bundle", f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise ContainerError("bundle", f"{path} lacks {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ContainerError("bundle", f"{path}: {error}") from error


def _parse(folder: Path, config: Mapping[str, Any]) -> Bundle:
    process = config["process"]
    linux = config["linux"]
    annotations = config.get("annotations", {})
    args = _strings(process["args"])
    layers = _strings(json.loads(annotations[LAYERS_ANNOTATION]))
    wanted = _limits(linux.get("resources", {}))
    faults = limits.faults(wanted)
    if faults:
        raise ContainerError("limits", "; ".join(faults))
    if not args or not args[0]:
        raise ContainerError("command", "there is no command to run")
    if not layers:
        raise ContainerError("bundle", "the image has no layers")
    user = process.get("user", {})
    return Bundle(
        folder=folder,
        args=args,
        env=_strings(process.get("env", [])),
        cwd=process.get("cwd", "/"),
        user=annotations.get(USER_ANNOTATION, f"{user.get('uid', 0)}:{user.get('gid', 0)}"),
        capabilities=caps.mask(process.get("capabilities", {}).get("bounding", [])),
        no_new_privileges=bool(process.get("noNewPrivileges", False)),
        oom_score_adj=int(process.get("oomScoreAdj", 0)),
        hostname=config.get("hostname", ""),
        layers=layers,
        mounts=tuple(_mount(entry) for entry in config.get("mounts", [])),
        masked_paths=_strings(linux.get("maskedPaths", [])),
        read_only_paths=_strings(linux.get("readonlyPaths", [])),
        sysctls=dict(linux.get("sysctl", {})),
        limits=wanted,
        log=_log(annotations.get(LOG_ANNOTATION)),
    )


def _strings(values: Sequence[Any]) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a string")
        if "\0" in value:
            raise ValueError(f"{value!r} holds a zero byte")
    return tuple(values)


def _mount(entry: Mapping[str, Any]) -> MountRequest:
    return MountRequest(
        destination=entry["destination"],
        kind=entry["type"],
        source=entry.get("source", ""),
        options=_strings(entry.get("options", [])),
    )


def _limits(resources: Mapping[str, Any]) -> Limits:
    cpu = resources.get("cpu", {})
    quota_us = int(cpu.get("quota", 0))
    return Limits(
        nano_cpus=limits.nano_cpus(quota_us, int(cpu["period"])) if quota_us else 0,
        memory_bytes=int(resources.get("memory", {}).get("limit", 0)),
        pids=int(resources.get("pids", {}).get("limit", 0)),
    )


def _log(annotation: str | None) -> LogSettings | None:
    if annotation is None:
        return None
    wanted = json.loads(annotation)
    return LogSettings(
        path=wanted["path"],
        max_size_bytes=int(wanted["max_size_bytes"]),
        max_files=int(wanted["max_files"]),
    )
