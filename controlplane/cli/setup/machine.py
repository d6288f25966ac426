"""What it takes to change a machine: root, its services, its users, its ports.

Below another root than / nothing but files is touched.
"""

import errno
import fcntl
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from controlplane.cli.errors import CliError
from controlplane.cli.setup import addresses
from controlplane.cli.setup.places import Places, places

SYSTEMD = Path("/run/systemd/system")
PROGRAMS = Path(sys.executable).parent

Owner = tuple[int, int] | None
"""User and group id; None: whoever writes."""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def run(argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@dataclass(frozen=True, slots=True)
class Systemd:
    """Units, by their full names."""

    run: Run = run

    def demand(self, units: Sequence[str], role: str) -> None:
        """Raise CliError unless the units are installed."""
        for unit in units:
            shown = self.run(["systemctl", "show", "--property=LoadState", "--value", unit])
            if shown.stdout.strip() != "loaded":
                raise CliError(
                    f"{unit} is not installed: run deploy/install.sh --role {role} first"
                )

    def start(self, units: Sequence[str]) -> None:
        """Have units run, now and after every boot; returns once they say that they are ready.

        Raises:
            CliError: one does not start.
        """
        for unit in units:
            if self.run(["systemctl", "enable", "--quiet", "--now", unit]).returncode != 0:
                raise CliError(f"{unit} does not start: see `journalctl -u {unit}`")

    def try_to_start(self, unit: str) -> None:
        """Have a unit run now, if it can."""
        self.run(["systemctl", "start", unit])

    def stop(self, units: Sequence[str]) -> None:
        """Have units not run, nor after a boot; those that are not installed do not."""
        for unit in units:
            done = self.run(["systemctl", "disable", "--quiet", "--now", unit])
            if done.returncode != 0 and "does not exist" not in done.stderr:
                reason = done.stderr.strip().rpartition("\n")[2]
                raise CliError(f"{unit} does not stop: {reason}")


@dataclass(frozen=True, slots=True)
class Machine:
    places: Places
    systemd: Systemd | None
    """None: the services are somebody else's to start and stop."""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> "Machine":
        found = places(environment)
        is_managed = found.root == Path("/") and SYSTEMD.is_dir()
        return cls(found, Systemd() if is_managed else None)

    @property
    def is_real(self) -> bool:
        return self.places.root == Path("/")

    def demand_root(self) -> None:
        if self.is_real and os.geteuid() != 0:
            raise CliError("this changes files of the system, and needs root: type it with sudo")

    def owner(self, user: str) -> Owner:
        """Return whose a file is to be; None where there are no such users."""
        if not self.is_real:
            return None
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            return None
        return found.pw_uid, found.pw_gid

    def addresses(self) -> list[addresses.Local]:
        return addresses.parse(run(["ip", "-json", "-4", "address", "show", "up"]).stdout)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let nobody else change this machine's part in clusters meanwhile.

        Raises:
            CliError: somebody does, or the disk refuses.
        """
        try:
            locked = _lock(self.places.state)
            try:
                yield
            finally:
                with suppress(OSError):
                    # Only if it is empty; before it is unlocked, so that nobody else has it.
                    self.places.state.rmdir()
                os.close(locked)
        except OSError as fault:
            raise CliError(_sentence(fault)) from fault


def _lock(folder: Path) -> int:
    """Return an open folder that nobody else has locked: itself, so that no file of ours remains.

    Raises:
        CliError: somebody has.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            raise CliError("another command of Estiba changes this machine: wait for it") from None
        # Whoever had it may have removed it in the last moment, and others would lock a new one.
        if os.fstat(opened).st_nlink:
            return opened
        os.close(opened)


def _sentence(fault: OSError) -> str:
    reason = (fault.strerror or str(fault)).lower()
    return f"{fault.filename}: {reason}" if fault.filename else reason


def demand_ports(ports: Sequence[tuple[str, int, str]]) -> None:
    """Raise CliError for the first port that cannot be listened on.

    Args:
        ports: address, port, and what needs it.
    """
    for address, port, needed_by in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
            except OSError as fault:
                if fault.errno != errno.EADDRINUSE:
                    raise
                raise CliError(
                    f"port {port} is taken, and {needed_by} needs it: "
                    f"`ss -ltnp 'sport = :{port}'` shows by whom"
                ) from None


@contextmanager
def all_or_nothing(paths: Sequence[Path]) -> Iterator[None]:
    """Of these files and folders, remove those that the block has made if it does not end well.

    Args:
        paths: folders before what is in them.
    """
    before = {path for path in paths if path.exists()}
    is_done = False
    try:
        yield
        is_done = True
    finally:
        if not is_done:
            for path in reversed(paths):
                if path not in before:
                    remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder if it is empty; what is absent is no fault."""
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            path.rmdir()
    else:
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path, *, mode: int, owner: Owner = None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    if owner is not None:
        os.chown(path, *owner)
