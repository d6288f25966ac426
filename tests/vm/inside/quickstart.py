"""Type the quickstart and its --down on a machine that nobody else uses; nothing may be left.

python3 -m tests.vm.inside.quickstart; run in the machine, from the root of the clone.

Installed packages and .venv stay, as the README says.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.support.footprint import Footprint

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "deploy/quickstart.sh"
# What a machine writes by itself, and what may stay.
PASSING = {
    *("/proc", "/sys", "/dev/pts", "/run/log", "/run/systemd", "/run/udev", "/run/user"),
    *("/var/log", "/var/lib/systemd", "/var/tmp", "/root/.ssh"),
    # The names of devices of modules: those stay loaded.
    "/dev/char",
    str(ROOT / ".venv"),
}


def main() -> int:
    before, files_before = Footprint.take(), set(files("/"))
    said = quickstart()
    faults = [
        f"no answer of hello.{slot}"
        for slot in (1, 2, 3)
        if f"hello from hello.{slot}, you asked for /" not in said
    ]
    quickstart("--down")
    faults += [f"left behind: {each}" for each in before.left_behind()]
    gone = before.things - Footprint.take().things
    # Those of cgroups are the machine's own: a session or a service of it that has ended.
    faults += [f"taken away: {each}" for each in sorted(gone) if not each.startswith("cgroup ")]
    faults += [f"left behind: file {each}" for each in sorted(set(files("/")) - files_before)]
    faults += [f"taken away: file {each}" for each in sorted(files_before - set(files("/")))]
    things = (len(before.processes), len(before.things), len(files_before))
    sys.stdout.write("compared: {} processes, {} things, {} files\n".format(*things))
    sys.stdout.write("".join(f"{each}\n" for each in faults))
    return int(bool(faults))


def quickstart(*words: str) -> str:
    done = subprocess.run([SCRIPT, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"quickstart.sh {' '.join(words)} ended with {done.returncode}")
    return done.stdout


def files(folder: str) -> Iterator[str]:
    """Yield the paths of everything below a folder."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.path not in PASSING and entry.name != "__pycache__":
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    yield from files(entry.path)


if __name__ == "__main__":
    sys.exit(main())
