"""How a benchmark tells its figures: a table with the machine, then one line of JSON."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    what: str
    value: float
    unit: str
    ratio: float | None = None
    """To the peer or limit that ``against`` names, measured in the same run."""
    against: str = ""


def version_of(*command: str) -> str:
    """Return the first line a program prints when asked for its version."""
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return (said.stdout or said.stderr).splitlines()[0].strip()


def machine() -> dict[str, str]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def tell(name: str, figures: Sequence[Figure], peers: dict[str, str]) -> None:
    """Print the table for people, and the same figures as the last line for machines."""
    described = machine()
    lines = [f"benchmark {name}"]
    lines += [f"  {key}: {value}" for key, value in {**described, **peers}.items()]
    width = max(len(figure.what) for figure in figures)
    for figure in figures:
        ratio = "" if figure.ratio is None else f"  {figure.ratio:.2f} x {figure.against}"
        lines.append(f"{figure.what:<{width}}  {figure.value:>10.3f} {figure.unit:<6}{ratio}")
    document = {
        "benchmark": name,
        "machine": described,
        "peers": peers,
        "figures": [
            {
                "what": figure.what,
                "value": round(figure.value, 6),
                "unit": figure.unit,
                "ratio": None if figure.ratio is None else round(figure.ratio, 4),
                "against": figure.against,
            }
            for figure in figures
        ],
    }
    sys.stdout.write("\n".join(lines) + "\n" + json.dumps(document) + "\n")
