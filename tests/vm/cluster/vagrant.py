"""Vagrant with the project's own Vagrantfile, as one types it; what it prints is shown and kept."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.cluster.hypervisor import BOX, SCRATCH

ROOT = Path(__file__).parents[3]
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class VagrantError(Exception):
    """Vagrant failed; what it printed was shown."""


@dataclass(slots=True)
class Vagrant:
    """One set of machines."""

    settings: dict[str, str]
    """Environment variables that the Vagrantfile reads."""
    printed: list[str] = field(default_factory=list)
    """All lines that Vagrant printed so far."""

    @classmethod
    def with_box(cls, box: Path, settings: dict[str, str]) -> "Vagrant":
        home = SCRATCH / "vagrant"
        home.mkdir()
        vagrant = cls({"ESTIBA_BOX": BOX, **settings})
        vagrant.run("box", "add", "--name", BOX, str(box))
        box.unlink()
        return vagrant

    def run(self, *words: str, **settings: str) -> None:
        """Run ``vagrant WORDS``, with further settings if need be.

        Raises:
            VagrantError: it did not succeed.
        """
        environment = os.environ | self.settings | settings
        environment |= {
            "HOME": str(SCRATCH / "vagrant"),
            "VAGRANT_HOME": str(SCRATCH / "vagrant"),
            "VAGRANT_DOTFILE_PATH": str(SCRATCH / "machines"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_CWD": str(ROOT),
        }
        with subprocess.Popen(
            ["vagrant", "--no-color", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as running:
            assert running.stdout
            for line in running.stdout:
                self._keep(line)
        if running.returncode:
            raise VagrantError(f"vagrant {' '.join(words)} ended with {running.returncode}")

    def _keep(self, line: str) -> None:
        text = _ESCAPE.sub("", line).rstrip()
        if text and not text.startswith("Progress:"):
            self.printed.append(text)
            sys.stdout.write(f"    | {text}\n")
            sys.stdout.flush()
