"""Print what there is of a machine, as JSON: what an installation may change, and must give back.

state.py; run in the machine, with its own Python and nothing else.
"""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

# What any machine writes by itself, or installing a Debian package does.
VOLATILE = (
    *("/proc", "/sys", "/dev", "/lost+found", "/run", "/var/log", "/var/cache", "/var/tmp"),
    *("/var/lib/dpkg", "/var/lib/apt", "/var/lib/systemd", "/root/.ssh"),
    # What useradd and userdel keep of the file before; the users are listed apart.
    *(
        f"/etc/{name}{end}"
        for name in ("passwd", "group", "shadow", "gshadow")
        for end in ("", "-")
    ),
    *("/etc/subuid", "/etc/subuid-", "/etc/subgid", "/etc/subgid-", "/etc/.pwd.lock"),
)
# Known to the machine's own services, or to nobody for long.
PASSING = ("/run/systemd", "/run/udev", "/run/user", "/run/log", "/run/credentials", "/run/lock")
CGROUPS = Path("/sys/fs/cgroup")
CONTAINERS = CGROUPS / "estiba.slice/estiba-containers.service/containers"
# Source: proc_net(5), tcp: a socket that listens.
LISTENING = "0A"


def said(*argv: str) -> list[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def below(top: str, *, but: Collection[str]) -> Iterator["os.DirEntry[str]"]:
    """Yield everything in a folder and the folders in it."""
    with suppress(FileNotFoundError), os.scandir(top) as entries:
        for entry in entries:
            if entry.path not in but:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    yield from below(entry.path, but=but)


def files() -> dict[str, list[object]]:
    """Return every file with its mode, owner, size, target and time."""
    found = {}
    for entry in below("/", but=VOLATILE):
        with suppress(FileNotFoundError):
            about = entry.stat(follow_symlinks=False)
            target = str(Path(entry.path).readlink()) if entry.is_symlink() else ""
            size = 0 if entry.is_dir(follow_symlinks=False) else about.st_size
            owner = (about.st_uid, about.st_gid)
            found[entry.path] = [about.st_mode, *owner, size, target, about.st_mtime_ns]
    return found


def passing_files() -> list[str]:
    """Return what lies below /run and where systemd remembers."""
    tops = ("/run", "/var/lib/systemd")
    return sorted(entry.path for top in tops for entry in below(top, but=PASSING))


def users() -> list[str]:
    return (
        Path("/etc/passwd").read_text().splitlines() + Path("/etc/group").read_text().splitlines()
    )


def units() -> dict[str, dict[str, str]]:
    """Return each unit of Estiba's with when it started and as which process."""
    found = {}
    wanted = "Id,ActiveState,UnitFileState,ActiveEnterTimestampMonotonic,MainPID"
    for block in "\n".join(said("systemctl", "show", "--property", wanted, "*estiba*")).split(
        "\n\n"
    ):
        values = dict(line.split("=", 1) for line in block.splitlines() if line)
        if values:
            found[values.pop("Id")] = values
    return found


def containers() -> dict[str, list[list[int]]]:
    """Return the processes of each container: their pids and when they started."""
    found: dict[str, list[list[int]]] = {}
    for folder in sorted(CONTAINERS.glob("*-r*")):
        found[folder.name] = []
        for path in folder.rglob("cgroup.procs"):
            for pid in path.read_text().split():
                with suppress(FileNotFoundError):
                    stat = Path("/proc", pid, "stat").read_text()
                    found[folder.name].append([int(pid), int(stat.rpartition(")")[2].split()[19])])
    return found


def processes() -> list[str]:
    """Return the names of all processes, but those of the kernel and of whoever looks."""
    found = set()
    for folder in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            if folder.name.isdigit() and (folder / "cmdline").read_bytes():
                found.add((folder / "comm").read_text().strip())
    return sorted(found - {"sshd", "bash", "sh", "python3", "systemctl"})


def ports() -> list[str]:
    found = set()
    for protocol in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                found.add(f"{protocol} {fields[1]}")
    return sorted(found)


def tables() -> list[str]:
    with suppress(FileNotFoundError):
        return said("nft", "list", "tables")
    return []


def main() -> None:
    state = {
        "files": files(),
        "passing files": passing_files(),
        "users": users(),
        "units": units(),
        "containers": containers(),
        "processes": processes(),
        "cgroups": sorted(str(path) for path in CGROUPS.rglob("*estiba*") if path.is_dir()),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "tables": tables(),
        "mounts": [
            line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ],
        "ports": ports(),
    }
    json.dump(state, sys.stdout)


if __name__ == "__main__":
    main()
