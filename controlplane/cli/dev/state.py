"""The folder of a local cluster: what is kept there, and that one command at a time changes it."""

import errno
import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.cli.dev import plan
from controlplane.cli.errors import CliError

# What is ours in the folder. Nothing else is ever removed.
PASSING = ("cluster.json", "supervisor.sock", "registry.yml")
LASTING = ("dev.json", "pki", "etcd", "registry", "nodes", "log")


def resolve(folder: Path) -> Path:
    """Return the one path by which the cluster in a folder is known."""
    resolved = folder.expanduser().resolve()
    if len(str(resolved)) > plan.LONGEST_FOLDER:
        raise CliError(
            f"--dir {resolved} is longer than {plan.LONGEST_FOLDER} characters, "
            "too long for the sockets below it: choose a shorter one"
        )
    return resolved


def load(folder: Path) -> plan.Layout | None:
    """Read what was decided when the cluster was made; None if there is none."""
    try:
        text = (folder / "dev.json").read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    seats = tuple(plan.Seat(seat["id"], seat["hostname"]) for seat in json.loads(text)["nodes"])
    return plan.Layout(folder, programs_folder(), seats)


def make(folder: Path, nodes: int) -> plan.Layout:
    """Decide on a new cluster and write it down.

    Raises:
        CliError: the folder holds something that is not ours.
    """
    strange = sorted({entry.name for entry in folder.iterdir()} - {*PASSING, *LASTING, "lock"})
    if strange:
        raise CliError(f"--dir {folder} is not empty (it holds {strange[0]}): choose another")
    seats = tuple(plan.Seat(secrets.token_hex(6), f"n{n}") for n in range(1, nodes + 1))
    kept = {"nodes": [{"id": seat.id, "hostname": seat.hostname} for seat in seats]}
    write(folder / "dev.json", to_json(kept))
    return plan.Layout(folder, programs_folder(), seats)


def programs_folder() -> Path:
    """Return where this installation's programs lie: beside the interpreter that runs us."""
    return Path(sys.executable).parent


def to_json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def write(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other command change the cluster meanwhile; the folder is made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(path, descriptor):
                yield
                return
            # The one before us removed the folder's content, and our file with it.
            folder.mkdir(parents=True, exist_ok=True)
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def remove(folder: Path, *, keep: bool) -> None:
    """Remove what is ours, called with the lock held; with ``keep`` only what ends with a run.

    Raises:
        CliError: something is mounted below the folder, so removing could reach elsewhere.
    """
    mounted = _mounts_below(folder)
    if mounted:
        raise CliError(f"something is still mounted at {mounted[0]}: unmount it, then try again")
    members = tuple(f"{name}.toml" for name in plan.MEMBERS)
    for name in (*PASSING, *members, *(() if keep else LASTING)):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not keep:
        (folder / "lock").unlink(missing_ok=True)
        try:
            folder.rmdir()
        except OSError as error:
            # Somebody else's files, or an empty folder that somebody is in: they stay.
            if error.errno not in {errno.ENOTEMPTY, errno.EBUSY}:
                raise


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (line.split()[4] for line in lines)
    return [point for point in points if point.startswith(f"{folder}/")]
