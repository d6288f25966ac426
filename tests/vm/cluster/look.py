"""For a machine's own Python: print as JSON what the kernel has of Estiba's containers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PARENT = Path("/sys/fs/cgroup/estiba.slice/estiba-containers.service/containers")
LINK_GROUP = "0x657374"
FILES = ("memory.max", "memory.events", "cpu.max", "cpu.stat", "pids.max", "pids.events")


def process(pid: str) -> dict[str, Any]:
    """Tell who a process is. Source: proc_pid_stat(5), field 22; proc_pid_status(5), NSpid."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    inner = next(line.split()[-1] for line in status if line.startswith("NSpid:"))
    return {
        "pid": int(pid),
        "started": int(stat.rpartition(")")[2].split()[19]),
        "name": stat[stat.index("(") + 1 : stat.rindex(")")],
        "inner_pid": int(inner),
    }


def processes(cgroup: Path) -> list[dict[str, Any]]:
    found = []
    for pid in (cgroup / "cgroup.procs").read_text().split():
        try:
            found.append(process(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found, key=lambda each: each["pid"])


def container(cgroup: Path) -> dict[str, Any]:
    files = {name: (cgroup / name).read_text().strip() for name in FILES}
    return {"processes": processes(cgroup), "files": files}


def links() -> list[str]:
    shown = subprocess.run(
        ["ip", "-json", "link", "show", "group", LINK_GROUP],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [each.get("ifalias", each["ifname"]) for each in json.loads(shown or "[]") if each]


def main() -> None:
    cgroups = [each for each in PARENT.glob("*") if each.is_dir()]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    bundles = Path("/var/lib/estiba/agent/containers").glob("*")
    records = Path("/var/lib/estiba/launcher").glob("*.json")
    found = {
        "containers": {each.name: container(each) for each in cgroups},
        "mounts": [each for each in mounts if each.startswith("/var/lib/estiba/")],
        "links": links(),
        "bundles": [each.name for each in bundles],
        "records": [each.stem for each in records],
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
