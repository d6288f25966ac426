"""What the whole machine uses, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class MachineStats:
    """``cpu_ns`` is processor time since the boot; the rest is now. ``pids`` counts threads too."""

    cpu_ns: int
    memory_bytes: int
    pids: int


def read(proc: Path = Path("/proc")) -> MachineStats:
    return MachineStats(
        cpu_ns=busy_ns((proc / "stat").read_text()),
        memory_bytes=used_bytes((proc / "meminfo").read_text()),
        pids=threads((proc / "loadavg").read_text()),
    )


def busy_ns(stat: str) -> int:
    """Return the processor time that was not idle, from the text of /proc/stat.

    Source: proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guest time
    is counted in user already.
    """
    line = next(line for line in stat.splitlines() if line.startswith("cpu "))
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) * _NS_PER_TICK


def used_bytes(meminfo: str) -> int:
    """Return the memory that could not be had at once, from the text of /proc/meminfo."""
    fields = dict(line.split(":", 1) for line in meminfo.splitlines())
    total, available = (
        int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")
    )
    return total - available


def threads(loadavg: str) -> int:
    """Return how many there are, from the text of /proc/loadavg: its fourth field is R/ALL."""
    return int(loadavg.split()[3].partition("/")[2])
