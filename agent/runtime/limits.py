"""Decide what is written into cgroup files for a container's limits. Touches no file."""

from dataclasses import dataclass

CPU_PERIOD_US = 100_000
MIN_CPU_QUOTA_US = 1_000
MIN_MEMORY_BYTES = 4 * 1024 * 1024

_NANOS_PER_CPU = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use at most. Zero: no limit."""

    nano_cpus: int = 0
    memory_bytes: int = 0
    pids: int = 0


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Setting:
    """One value for one file of a container's cgroup."""

    controller: str
    file: str
    value: str
    # Not every kernel accounts for swap; where it does not, the file is absent.
    optional: bool = False


def faults(limits: Limits) -> list[str]:
    """Return a sentence for every limit that the kernel would refuse or no program survives."""
    found = []
    for name, value in (
        ("cpu limit", limits.nano_cpus),
        ("memory limit", limits.memory_bytes),
        ("pids limit", limits.pids),
    ):
        if value < 0:
            found.append(f"{name} {value} is negative")
    if limits.nano_cpus > 0:
        try:
            cpu_quota_us(limits.nano_cpus)
        except ValueError as error:
            found.append(str(error))
    if 0 < limits.memory_bytes < MIN_MEMORY_BYTES:
        found.append(
            f"memory limit {limits.memory_bytes} bytes is below {MIN_MEMORY_BYTES} bytes (4 MiB):"
            " the kernel would kill the container before its first instruction"
        )
    return found


def cpu_quota_us(nano_cpus: int, *, period_us: int = CPU_PERIOD_US) -> int:
    """Return how long a container may run in each period, microseconds.

    Args:
        nano_cpus: limit in billionths of a CPU; 1_500_000_000 is one and a half.
        period_us: accounting period, microseconds, 1_000 to 1_000_000.

    Raises:
        ValueError: the quota comes to less than 1_000 us, which the kernel would
            refuse with EINVAL; saying so here names the limit that was too small.

    Source: Linux scheduler/sched-bwc; the lower bound is min_cfs_quota_period in
    kernel/sched/core.c.
    """
    quota_us = nano_cpus * period_us // _NANOS_PER_CPU
    if quota_us < MIN_CPU_QUOTA_US:
        least = MIN_CPU_QUOTA_US / period_us
        raise ValueError(
            f"cpu limit {nano_cpus / _NANOS_PER_CPU:g} is below {least:g}: the kernel grants"
            f" no less than {MIN_CPU_QUOTA_US} us in each {period_us} us"
        )
    return quota_us


def nano_cpus(quota_us: int, period_us: int) -> int:
    """Return the limit that a quota comes to, rounded up so that it renders the same again."""
    return -(-quota_us * _NANOS_PER_CPU // period_us)


def version_1(limits: Limits) -> list[Setting]:
    """Render limits for cgroup v1.

    Source: Linux admin-guide/cgroup-v1/memory, scheduler/sched-bwc, cgroup-v1/pids.
    """
    settings = []
    if limits.nano_cpus:
        quota_us = cpu_quota_us(limits.nano_cpus)
        settings.append(Setting("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US)))
        settings.append(Setting("cpu", "cpu.cfs_quota_us", str(quota_us)))
    if limits.memory_bytes:
        value = str(limits.memory_bytes)
        settings.append(Setting("memory", "memory.limit_in_bytes", value))
        # Memory and swap together as much as memory alone: no swap.
        settings.append(Setting("memory", "memory.memsw.limit_in_bytes", value, optional=True))
    if limits.pids:
        settings.append(Setting("pids", "pids.max", str(limits.pids)))
    return settings


def version_2(limits: Limits) -> list[Setting]:
    """Render limits for cgroup v2.

    Source: Linux admin-guide/cgroup-v2, "CPU", "Memory" and "PID Interface Files".
    """
    settings = []
    if limits.nano_cpus:
        quota_us = cpu_quota_us(limits.nano_cpus)
        settings.append(Setting("cpu", "cpu.max", f"{quota_us} {CPU_PERIOD_US}"))
    if limits.memory_bytes:
        settings.append(Setting("memory", "memory.max", str(limits.memory_bytes)))
        settings.append(Setting("memory", "memory.swap.max", "0", optional=True))
    if limits.pids:
        settings.append(Setting("pids", "pids.max", str(limits.pids)))
    return settings
