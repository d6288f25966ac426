"""Read the agent's configuration file, and say which key is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ConfigError
from estiba.kit import tables
from estiba.kit.tables import Table, TableError
from estiba.kit.tls import TlsFiles
from estiba.model import Resources


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
        ConfigError: names the file, and the key that is wrong.
    """
    try:
        return tables.load(path, parse)
    except TableError as fault:
        raise ConfigError(str(fault)) from fault


def parse(top: Table) -> Config:
    """Read the file's table; raises TableError."""
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
        log_level=top.choice("log_level", tables.LOG_LEVELS, default="info"),
        tls=top.table("tls").tls_files(),
        registries={name: _registry(registries.table(name)) for name in registries.names()},
        capacity=Resources(
            nano_cpus=round(capacity.decimal("cpus", default=0) * 1e9),
            memory_bytes=capacity.number("memory_bytes", default=0),
        ),
    )
    if not config.members:
        raise TableError("members: names no member of the control plane")
    return config


def _registry(table: Table) -> RegistryConfig:
    ca = table.text("ca", default="")
    return RegistryConfig(address=table.text("address"), ca=Path(ca) if ca else None)
