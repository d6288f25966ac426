"""Decide the OCI runtime-spec `config.json` of a container. Touches nothing.

What the specification has no field for is said in annotations: the layers of the
root, the user by name, the log.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agent.runtime.limits import CPU_PERIOD_US, NO_LIMITS, Limits, cpu_quota_us

OCI_VERSION = "1.0.2"

LAYERS_ANNOTATION = "org.estiba.layers"
USER_ANNOTATION = "org.estiba.user"
LOG_ANNOTATION = "org.estiba.log"

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CAPABILITIES = (
    *("CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"),
    *("CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID"),
    *("CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"),
)
"""Docker's fourteen without NET_RAW, which lets a container forge its neighbours' addresses."""

MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list"),
    *("/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"),
)
READ_ONLY_PATHS = (*("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),)

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "cgroup")

SYSCTLS = {
    # Without NET_RAW, ping and the ports below 1024 have to be allowed in another way.
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the node shown in the container."""

    source: str
    destination: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Where the output goes, and how much of it is kept: ``max_files`` of that size."""

    path: str
    max_size_bytes: int = 10 * 1024 * 1024
    max_files: int = 3


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """Everything that the agent decides about one container."""

    args: tuple[str, ...]
    # Folders, the lowest first.
    layers: tuple[str, ...]
    hostname: str
    # NAME=VALUE; of two with the same name the later counts.
    env: tuple[str, ...] = ()
    cwd: str = "/"
    # USER[:GROUP], names or numbers, looked up in the image. Empty: root.
    user: str = ""
    log: LogSettings | None = None
    limits: Limits = NO_LIMITS
    # Such as resolv.conf, hosts and hostname.
    binds: tuple[Bind, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)


def build_spec(settings: ContainerSettings) -> dict[str, Any]:
    """Return the content of `config.json`.

    Raises:
        ValueError: a limit is below what the kernel accepts; `limits.faults` says it first.
    """
    capabilities = list(CAPABILITIES)
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(settings.args),
            "env": environment(settings.env, hostname=settings.hostname),
            "cwd": settings.cwd or "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": True,
            "oomScoreAdj": 0,
        },
        "root": {"path": "rootfs"},
        "hostname": settings.hostname,
        "mounts": [*_system_mounts(), *(_bind(bind) for bind in settings.binds)],
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "resources": _resources(settings.limits),
            "sysctl": dict(SYSCTLS),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
        },
        "annotations": _annotations(settings),
    }


def environment(env: Iterable[str], *, hostname: str) -> list[str]:
    """Return the variables with each name once, and PATH and HOSTNAME if they were not given."""
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    for entry in env:
        name, _, value = entry.partition("=")
        variables[name] = value
    return [f"{name}={value}" for name, value in variables.items()]


def _annotations(settings: ContainerSettings) -> dict[str, str]:
    annotations = dict(settings.annotations)
    annotations[LAYERS_ANNOTATION] = json.dumps(list(settings.layers))
    if settings.user:
        annotations[USER_ANNOTATION] = settings.user
    if settings.log:
        annotations[LOG_ANNOTATION] = json.dumps(
            {
                "path": settings.log.path,
                "max_size_bytes": settings.log.max_size_bytes,
                "max_files": settings.log.max_files,
            }
        )
    return annotations


def _resources(limits: Limits) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if limits.memory_bytes:
        resources["memory"] = {"limit": limits.memory_bytes, "swap": limits.memory_bytes}
    if limits.nano_cpus:
        resources["cpu"] = {"quota": cpu_quota_us(limits.nano_cpus), "period": CPU_PERIOD_US}
    if limits.pids:
        resources["pids"] = {"limit": limits.pids}
    return resources


def _system_mounts() -> list[dict[str, Any]]:
    closed = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", *closed),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            *("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        _mount("/dev/shm", "tmpfs", *closed, "mode=1777", "size=65536k"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", *closed),
        _mount("/sys", "sysfs", *closed, "ro"),
        _mount("/sys/fs/cgroup", "cgroup", *closed, "ro"),
    ]


def _mount(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def _bind(bind: Bind) -> dict[str, Any]:
    options = ["rbind", "ro"] if bind.read_only else ["rbind"]
    return {
        "destination": bind.destination,
        "type": "bind",
        "source": bind.source,
        "options": options,
    }
