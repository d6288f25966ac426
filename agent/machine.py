"""Say what this machine is: its size, for the scheduler, and its description, for people."""

import importlib.metadata
import os
import platform

from agent.config import Config
from estiba.model import Resources
from estiba.v1 import types_pb2 as v1


def capacity(configured: Resources) -> Resources:
    """Return what the scheduler may count on: what was configured, else what there is."""
    return Resources(
        nano_cpus=configured.nano_cpus or len(os.sched_getaffinity(0)) * 1_000_000_000,
        memory_bytes=configured.memory_bytes
        or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def describe(
    config: Config, size: Resources, *, launcher_protocol: int, cgroup_version: int
) -> v1.NodeDescription:
    return v1.NodeDescription(
        hostname=config.hostname,
        os=platform.system().lower(),
        architecture=platform.machine(),
        nano_cpus=size.nano_cpus,
        memory_bytes=size.memory_bytes,
        agent_version=importlib.metadata.version("estiba"),
        address=config.address,
        metrics_address=config.metrics_advertise,
        launcher_protocol=launcher_protocol,
        kernel=platform.release(),
        cgroup_version=cgroup_version,
    )
