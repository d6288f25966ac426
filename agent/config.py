"""Read the agent's configuration file, and say which key is wrong."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import ConfigError
from estiba.kit.tls import TlsFiles
from estiba.model import Resources

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Where a registry is reached, and the authority that signed its certificate."""

    address: str
    ca: Path | None


@dataclass(frozen=True, slots=True)
class Config:
    node_id: str
    hostname: str
    members: tuple[str, ...]
    state_dir: Path
    launcher_socket: Path
    cgroup_parent: str
    address: str
    metrics_listen: str
    metrics_advertise: str
    """Where Prometheus reaches the metrics, HOST:PORT: what the description of the node says."""
    nameservers: tuple[str, ...]
    log_level: str
    tls: TlsFiles
    registries: Mapping[str, RegistryConfig]
    capacity: Resources
    """What the scheduler may count on; 0: what the machine has."""


def load(path: Path) -> Config:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, lacks a key, has one too many or of a wrong kind.
    """
    try:
        return parse(tomllib.loads(path.read_text()))
    except OSError as fault:
        raise ConfigError(f"{path}: {fault.strerror}") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: {fault}") from fault
    except ConfigError as fault:
        raise ConfigError(f"{path}: {fault}") from fault


def parse(document: Mapping[str, Any]) -> Config:
    """Read a document.

    Raises:
        ConfigError: as for `load`, without the file's name.
    """
    top = _Table("", document)
    tls = top.table("tls")
    capacity = top.table("capacity", required=False)
    registries = top.table("registries", required=False)
    config = Config(
        node_id=top.text("node_id"),
        hostname=top.text("hostname"),
        members=top.texts("members"),
        state_dir=Path(top.text("state_dir")),
        launcher_socket=Path(top.text("launcher_socket")),
        cgroup_parent=top.text("cgroup_parent"),
        address=top.text("address"),
        metrics_listen=top.text("metrics_listen"),
        metrics_advertise=top.text("metrics_advertise", default=top.text("metrics_listen")),
        nameservers=top.texts("nameservers", default=()),
        log_level=top.text("log_level", default="info"),
        tls=TlsFiles(
            ca=Path(tls.text("ca")), cert=Path(tls.text("cert")), key=Path(tls.text("key"))
        ),
        registries={name: _registry(registries.table(name)) for name in registries.names()},
        capacity=Resources(
            nano_cpus=round(capacity.number("cpus", default=0) * 1e9),
            memory_bytes=round(capacity.number("memory_bytes", default=0)),
        ),
    )
    for table in (tls, capacity, registries, top):
        table.refuse_unknown()
    if not config.members:
        raise ConfigError("members: names no member of the control plane")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level: {config.log_level!r} is none of {', '.join(LOG_LEVELS)}")
    return config


def _registry(table: "_Table") -> RegistryConfig:
    ca = table.text("ca", default="")
    registry = RegistryConfig(address=table.text("address"), ca=Path(ca) if ca else None)
    table.refuse_unknown()
    return registry


class _Table:
    """One table of the document, which knows its own name and which keys were asked for."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self._name = name
        self._values = values
        self._asked: set[str] = set()

    def names(self) -> list[str]:
        return list(self._values)

    def text(self, key: str, *, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self._full(key)}: {value!r} is no text")
        return value

    def texts(self, key: str, *, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        values = self._get(key, default)
        if not isinstance(values, list | tuple) or not all(
            isinstance(each, str) for each in values
        ):
            raise ConfigError(f"{self._full(key)}: {values!r} is no list of texts")
        return tuple(values)

    def number(self, key: str, *, default: float) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ConfigError(f"{self._full(key)}: {value!r} is no number from 0")
        return value

    def table(self, key: str, *, required: bool = True) -> "_Table":
        value = self._get(key, None if required else {})
        if not isinstance(value, dict):
            raise ConfigError(f"{self._full(key)}: is no table")
        return _Table(self._full(key), value)

    def refuse_unknown(self) -> None:
        for key in self._values:
            if key not in self._asked:
                raise ConfigError(f"{self._full(key)}: is no key of this file")

    def _get(self, key: str, default: object) -> object:
        self._asked.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise ConfigError(f"{self._full(key)}: is missing")
        return value

    def _full(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key
