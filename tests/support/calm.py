"""What must be true of a dev cluster once it was left alone for a while, read from the kernel.

Each look returns what is wrong, as sentences; nothing said is nothing wrong.
"""

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.cgroups import folders_of
from tests.support.dev import DevCluster, processes

RUNNING = "DESIRED_STATE_RUNNING"
SHAMEFUL = re.compile(r"Traceback|\bERROR\b|\bCRITICAL\b|Task exception was never|never awaited")


def faults(cluster: DevCluster, wanted: Mapping[str, int]) -> list[str]:
    """Compare what is declared, what is said and what is there."""
    tasks = [task for service in wanted for task in cluster.tasks(service)]
    wanted_tasks = [task for task in tasks if task["desired"] == RUNNING]
    said = [_unlike(name, replicas, wanted_tasks) for name, replicas in wanted.items()]
    found = [fault for each in said for fault in each]
    found += [
        f"{task['metadata']['name']} is {_state(task)} and does not say why"
        for task in wanted_tasks
        if _state(task) != "TASK_STATE_RUNNING" and not _reason(task)
    ]
    for node in cluster.described["nodes"]:
        here = [task for task in wanted_tasks if task.get("node_id") == node["id"]]
        kept = {task["metadata"]["id"] for task in tasks if task.get("node_id") == node["id"]}
        found += _on_node(cluster, node, here, kept)
    return found


def _state(task: Mapping[str, Any]) -> str:
    return str(task.get("status", {}).get("state", "none"))


def _reason(task: Mapping[str, Any]) -> str:
    return str(task.get("status", {}).get("message") or task.get("placement", ""))


def _unlike(name: str, replicas: int, tasks: list[dict[str, Any]]) -> list[str]:
    mine = [task for task in tasks if task["metadata"]["name"].rpartition(".")[0] == name]
    running = [task for task in mine if _state(task) == "TASK_STATE_RUNNING"]
    slots = Counter(task["slot"] for task in running)
    if slots == Counter(range(1, replicas + 1)) and len(mine) == replicas:
        return []
    states = [f"{task['metadata']['id']} {_state(task)} {_reason(task)}" for task in mine]
    return [f"{name} wants {replicas} and has {states}"]


def _on_node(
    cluster: DevCluster, node: Mapping[str, Any], tasks: list[dict[str, Any]], kept: set[str]
) -> list[str]:
    name = node["hostname"]
    folder = cluster.folder / "nodes" / name
    containers = sorted(f"{task['metadata']['id']}-r{task['status'].get('run')}" for task in tasks)
    pids = sorted(int(task["status"].get("pid", 0)) for task in tasks)
    looks: list[tuple[str, object, object]] = [
        ("first processes", sorted(cluster.inits()[name]), pids),
        ("bundles", _names(folder / "state" / "containers"), containers),
        ("launcher's notes", _names(folder / "launcher", ".json"), containers),
        ("addresses", _held(folder), _addresses(tasks)),
        ("interfaces", len(_ports(cluster, name)), len(containers)),
    ]
    looks += [
        (f"cgroups in {folder}", names, containers)
        for folder, names in _cgroups(node["cgroup_parent"])
    ]
    found = [
        f"{name}: {what} are {is_}, not {should}" for what, is_, should in looks if is_ != should
    ]
    for task, pid in ((task, int(task["status"].get("pid", 0))) for task in tasks):
        inside = _address_inside(pid)
        if inside != task["status"].get("address"):
            found.append(f"{name}: {task['metadata']['name']} has {inside}, not what it says")
    for what in ("logs", "tasks"):
        names = {each.removesuffix(".journal") for each in _names(folder / "state" / what)}
        if not names <= kept:
            found.append(f"{name}: {what} of tasks that are gone: {sorted(names - kept)}")
    return found


def _names(folder: Path, ending: str = "") -> list[str]:
    if not folder.is_dir():
        return []
    found = (path.name for path in folder.iterdir() if path.name.endswith(ending))
    return sorted(name.removesuffix(ending) if ending else name for name in found)


def _held(folder: Path) -> list[str]:
    file = folder / "state" / "network.json"
    if not file.exists():
        return []
    networks = json.loads(file.read_text())["networks"]
    held = (address for network in networks for address in network["held"].values())
    return sorted(str(ip_address(address)) for address in held)


def _addresses(tasks: list[dict[str, Any]]) -> list[str]:
    return sorted(str(task["status"].get("address")) for task in tasks)


def _ports(cluster: DevCluster, node: str) -> list[str]:
    agent = cluster.pid(f"{node}-agent")
    shown = subprocess.run(
        ["nsenter", f"--net=/proc/{agent}/ns/net", "ip", "-br", "link"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in shown.stdout.splitlines() if line.startswith("es")]


def _address_inside(pid: int) -> str:
    shown = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-br", "-4", "addr", "show", "eth0"],
        capture_output=True,
        text=True,
        check=False,
    )
    words = shown.stdout.split()
    return words[2].split("/")[0] if len(words) > 2 else f"nothing ({shown.stderr.strip()})"


def _cgroups(parent: str) -> list[tuple[str, list[str]]]:
    return [
        (str(here), sorted(path.name for path in here.iterdir() if path.is_dir()))
        for here in folders_of(parent)
    ]


def shame(cluster: DevCluster) -> list[str]:
    """Return lines of the programs' logs that no storm excuses."""
    found = []
    for log in sorted((cluster.folder / "log").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        found += [f"{log.name}: {line}" for line in lines if SHAMEFUL.search(line)]
    return found


def busy(cluster: DevCluster, *, for_s: float = 3.0) -> dict[str, float]:
    """Return the share of a processor that each program of the cluster uses now."""
    pids = {name: program["pid"] for name, program in cluster.programs().items()}
    before = {name: _cpu_s(pid) for name, pid in pids.items()}
    time.sleep(for_s)
    return {name: (_cpu_s(pid) - before[name]) / for_s for name, pid in pids.items()}


def _cpu_s(pid: int) -> float:
    """Source: proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def strays(cluster: DevCluster) -> list[str]:
    """Return processes in the cluster's cgroups that no container accounts for."""
    inits = {pid for pids in cluster.inits().values() for pid in pids}
    spaces = {_pid_namespace(pid) for pid in inits}
    parents = cluster.cgroup_parents().values()
    return [
        f"process {pid} in {cgroups!r}"
        for pid, cgroups, _ in processes()
        if any(f"{parent}/" in cgroups for parent in parents) and _pid_namespace(pid) not in spaces
    ]


def _pid_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def gaps(cluster: DevCluster) -> list[str]:
    """Return where logs of services that count their lines, as `line N`, miss or repeat one."""
    found = []
    for run in sorted((cluster.folder / "nodes").glob("*/state/logs/*/*.log")):
        words = (line.split() for line in run.read_text(errors="replace").splitlines())
        numbers = [int(each[-1]) for each in words if each[-2:-1] == ["line"]]
        wrong = [(one, next_) for one, next_ in pairwise(numbers) if next_ != one + 1]
        found += [f"{run.parent.name}/{run.name}: {next_} after {one}" for one, next_ in wrong]
    return found
