"""All kernel tests and the quickstart, on a machine of its own with cgroup v2 and systemd.

python -m tests.vm.cgroup2 [quickstart|kernel]     from the root of the clone, as root

The machine has the packages, the wheels and a virtual environment of what Estiba needs; the clone
comes on a disk that it may read. It reaches no network.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vm.image import CACHE, Recipe, build
from tests.vm.machine import Machine

ROOT = Path(__file__).parents[2]
PYTHON = "3.11"
CLONE = "/root/estiba"
WHEELS = "/opt/wheels"
# How many times longer than on the machines that people have a deadline is.
SLOWNESS = 8
WITHIN_S = 3600.0

FOUND = """\
set -eu
test "$(stat --file-system --format %T /sys/fs/cgroup)" = cgroup2fs
test "$(readlink /sbin/init)" = /lib/systemd/systemd
# For what the tests look at there: a machine that runs Docker has it.
modprobe br_netfilter
mkdir /mnt/clone
mount -o ro /dev/vdb /mnt/clone
cp -a /mnt/clone/. ~/estiba
"""
RUNS = {
    # First, for it finds the machine as somebody has it who types it.
    "quickstart": "python3 -m tests.vm.inside.quickstart",
    "kernel": "tests/run.sh kernel",
}
PIP = f"PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS} PIP_DISABLE_PIP_VERSION_CHECK=1"
ENTER = f"cd {CLONE} && export ESTIBA_TEST_SLOWNESS={SLOWNESS} {PIP} &&"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    steps = Steps()
    with tempfile.TemporaryDirectory(prefix="estiba-vm-") as name:
        folder = Path(name)
        with steps.step("wheels"):
            wheels = fill_wheels()
        with steps.step("image"):
            image = build(recipe(wheels))
        with steps.step("machine"):
            disk = make_disk(folder)
            (folder / "machine").mkdir()
            machine = Machine.start(image, folder / "machine", disks=[disk])
        with machine:
            with steps.step("clone"):
                machine.run(FOUND)
            for name in sys.argv[1:] or RUNS:
                with steps.step(name):
                    code = machine.follow(f"{ENTER} {RUNS[name]}", timeout_s=WITHIN_S)
                    steps.expect(name, code)
    return steps.tell()


class Steps:
    """What was done, how long it took, and what failed."""

    def __init__(self) -> None:
        self._took_s: dict[str, float] = {}
        self._failed: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        sys.stdout.write(f"\n-- {name}\n")
        sys.stdout.flush()
        began = time.monotonic()
        yield
        self._took_s[name] = time.monotonic() - began

    def expect(self, name: str, code: int) -> None:
        if code:
            self._failed.append(name)

    def tell(self) -> int:
        lines = [f"{name:<12} {took_s:6.0f} s" for name, took_s in self._took_s.items()]
        total = f"{'all':<12} {sum(self._took_s.values()):6.0f} s"
        sys.stdout.write("\n" + "\n".join((*lines, total)) + "\n")
        if self._failed:
            sys.stdout.write(f"failed: {', '.join(self._failed)}\n")
        return int(bool(self._failed))


def requirements() -> list[str]:
    """Return what pyproject.toml asks for: to run, to be tested, to be built."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = project["project"]["dependencies"]
    tests = project["project"]["optional-dependencies"]["test"]
    return [*needs, *tests, *project["build-system"]["requires"], "editables"]


def fill_wheels() -> Path:
    """Return a folder with all requirements' names and wheels, kept from run to run."""
    wanted = requirements()
    folder = CACHE / f"wheels-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]}"
    if folder.exists():
        os.utime(folder)
    else:
        CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wheels-", dir=CACHE) as work:
            fetched = Path(work) / "fetched"
            fetched.mkdir()
            names = fetched / "requirements.txt"
            names.write_text("".join(f"{each}\n" for each in wanted))
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--quiet"),
                    *("--dest", str(fetched), "--requirement", str(names)),
                    *("--only-binary", ":all:", "--python-version", PYTHON),
                ],
                check=True,
            )
            fetched.rename(folder)
    return folder


def recipe(wheels: Path) -> Recipe:
    install = f"{PIP} {CLONE}/.venv/bin/pip install --quiet --requirement {WHEELS}/requirements.txt"
    return Recipe(folders=((wheels, WHEELS),), commands=(f"python3 -m venv {CLONE}/.venv", install))


def make_disk(folder: Path) -> Path:
    """Make a file system with the clone as it stands, without what git ignores."""
    copy, disk = folder / "clone", folder / "clone.img"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(copy), str(disk), "128M"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return disk


if __name__ == "__main__":
    sys.exit(main())
