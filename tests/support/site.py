"""Machines of a test's own: folders in place of /, in a network namespace whose ports are free.

Commands are typed on them as people do, and what they say to start by hand is started.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controlplane.cli.setup.places import Places
from tests.support.dev import Said
from tests.support.network import Space
from tests.support.waiting import eventually

BIN = Path(sys.executable).parent
ADDRESS = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    mode: int


class Host:
    """One machine."""

    def __init__(self, root: Path, space: Space) -> None:
        self.root = root
        self.places = Places(root)
        self.commands = ""
        """What it said is to be started by hand."""
        self._space = space
        self._programs: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *words: str, environment: dict[str, str] | None = None) -> Said:
        """Type ``estiba WORDS``."""
        done = subprocess.run(
            self._space.command(str(BIN / "estiba"), *words),
            env=self._environment() | (environment or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def estiba(self, *words: str) -> Said:
        """Type ``estiba WORDS``, and demand exit code 0."""
        said = self.run(*words)
        assert said.code == 0, f"estiba {' '.join(words)}: exit {said.code}: {said.err}{said.out}"
        return said

    def token(self, *words: str) -> str:
        return self.estiba("cluster", "token", "create", "-q", *words).out.strip()

    def start(self, commands: str) -> None:
        """Start the programs of these lines of shell."""
        for line in commands.splitlines():
            argv = shlex.split(line)
            name = Path(argv[0]).name
            with (self.root.parent / f"{self.root.name}-{name}.log").open("ab") as log:
                self._programs[name] = subprocess.Popen(
                    self._space.command(*argv), stdout=log, stderr=log, env=self._environment()
                )

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        program = self._programs.pop(name)
        program.send_signal(number)
        return program.wait(timeout=30)

    def close(self) -> None:
        for name in reversed(list(self._programs)):
            self.stop(name)

    def log(self, name: str) -> str:
        return (self.root.parent / f"{self.root.name}-{name}.log").read_text()

    def files(self) -> dict[str, File]:
        """Return every file there is, but etcd's own."""
        return {
            str(path.relative_to(self.root)): File(path.read_bytes(), path.stat().st_mode & 0o777)
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and self.places.etcd_data not in path.parents
        }

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "ESTIBA" not in name}
        return kept | {"ESTIBA_ROOT": str(self.root)}


class Site:
    def __init__(self, folder: Path, space: Space) -> None:
        self._folder = folder
        self.space = space
        self._hosts: list[Host] = []

    def host(self, name: str) -> Host:
        root = self._folder / name
        root.mkdir()
        self._hosts.append(Host(root, self.space))
        return self._hosts[-1]

    def control_plane(self, name: str = "cp", *words: str) -> Host:
        """Have a machine that controls a cluster, and answers."""
        host = self.host(name)
        made = host.estiba("cluster", "init", "--advertise-addr", ADDRESS, *words)
        host.commands = made.out
        host.start(host.commands)
        answers(host)
        return host

    def close(self) -> None:
        for host in reversed(self._hosts):
            host.close()


def answers(host: Host) -> None:
    eventually(lambda: host.run("info").code == 0, within_s=30, what="the control plane answers")


def digest_in(token: str) -> str:
    found = re.fullmatch(r"estiba-1-([a-z2-7]{52})-[a-z2-7]{8}-[a-z2-7]{26}", token)
    assert found, token
    return found[1]


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    with Space() as space:
        space.run("ip", "link", "set", "lo", "up")
        made = Site(folder, space)
        try:
            yield made
        finally:
            made.close()
