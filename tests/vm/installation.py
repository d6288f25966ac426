"""One machine that Estiba is installed on, again and again: kept at each stage, and returned to.

bare        nothing of Estiba; the clone and the wheels are in it
packages    killed after the Debian packages were installed
programs    killed after this version's programs were made
installed   finished after many a kill: control plane and agent
serving     with a service of two replicas
former      from `bare`: what FIRST_INSTALLABLE made of it, with the same service
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.image import Recipe, build
from tests.vm.machine import Done, Machine

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"

FIRST_INSTALLABLE = "7cf1138cd17c985791184e6f6c7541b61bfe63b5"
"""The first commit whose install.sh could make a cluster and join it."""

SOURCE, FORMER_SOURCE = "/opt/clone", "/opt/former"
WHEELS, FORMER_WHEELS = "/opt/wheels", "/opt/former-wheels"
ADDRESS = "10.0.2.15"
"""What QEMU's network gives the machine."""

RECIPE = Recipe(
    packages=("docker-registry", "busybox-static"),
    repository=("etcd-server", "nftables", "iproute2", "kmod", "python3-venv"),
)
INSTALL_WITHIN_S = 900.0
CALM_WITHIN_S = 120.0

STEPS = ("Checks", "Debian packages", "System users", "Programs", "Units", "Services")

# In emulation an agent takes longer to start than a node may usually be silent.
PATIENCE = "sed -i '1i down_after_s = 60' /etc/estiba/estibad.toml"
REGISTRY = f"""\
set -eu
cd /root
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=registry \\
  -addext subjectAltName=DNS:registry.estiba,IP:{ADDRESS} -keyout registry-key.pem -out registry.pem
cat >registry.yml <<END
version: 0.1
storage: {{filesystem: {{rootdirectory: /root/registry}}}}
http:
  addr: {ADDRESS}:5000
  tls: {{certificate: /root/registry.pem, key: /root/registry-key.pem}}
END
systemd-run --quiet --unit registry docker-registry serve /root/registry.yml
until ss -Hltn | grep -q :5000; do sleep 0.2; done
/opt/estiba/current/bin/python -m controlplane.cli.dev.sample \\
  --registry {ADDRESS}:5000 --ca /root/registry.pem --name hello
cat >>/etc/estiba/agent.toml <<END
[registries."registry.estiba:5000"]
address = "{ADDRESS}:5000"
ca = "/root/registry.pem"
END
systemctl restart estiba-agent.service
"""


@dataclass(frozen=True, slots=True)
class Wheels:
    """Folders on this host: what is installed, and what was installed first of all."""

    now: Path
    source: Path
    former: Path
    former_source: Path


@contextmanager
def make_wheels(folder: Path) -> Iterator[Wheels]:
    """Have wheels of this clone, and of a worktree of FIRST_INSTALLABLE."""
    former = folder / "worktree"
    _git("worktree", "add", "--quiet", "--detach", str(former), FIRST_INSTALLABLE)
    try:
        for source, target in ((ROOT, folder / "now"), (former, folder / "former")):
            subprocess.run([source / "deploy" / "wheels.sh", target, "3.11"], check=True)
        # A machine without --wheels fetches what builds a wheel, too.
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder / "now"))
        subprocess.run([*pip, "hatchling"], check=True)
        yield Wheels(folder / "now", _clone(folder / "clone"), folder / "former", former)
    finally:
        _git("worktree", "remove", "--force", str(former))


def _clone(folder: Path) -> Path:
    """Copy what git has, or would have, of this clone."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *words], check=True)


class Installation:
    """The machine, and what is done to it. `at` first of all."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.offered = ""
        """What `install.sh` printed that made the control plane: how to join it."""
        self._saved: set[str] = set()
        self._makers: dict[str, tuple[str, Callable[[], None]]] = {
            "packages": ("bare", self._make_packages),
            "programs": ("packages", self._make_programs),
            "controlled": ("programs", self._make_controlled),
            "installed": ("controlled", self._make_installed),
            "serving": ("installed", self._make_serving),
            "former": ("bare", self._make_former),
        }

    def at(self, stage: str) -> "Installation":
        """Have the machine be at a stage, which is made if it has never been there."""
        if stage not in self._saved:
            before, make = self._makers[stage]
            self.at(before)
            make()
            self.keep(stage)
        else:
            self.machine.restore(stage)
        return self

    def keep(self, stage: str) -> None:
        self.machine.save(stage)
        self._saved.add(stage)

    # ---------------------------------------------------------------- what is done to it

    def run(self, command: str, *, check: bool = True, timeout_s: float = 240.0) -> Done:
        return self.machine.run(command, check=check, timeout_s=timeout_s)

    def inside(self, script: str, *words: str, check: bool = True) -> Done:
        """Run a program of `inside` in the machine."""
        with (INSIDE / script).open("rb") as text:
            return self.machine.run(
                f"exec python3 /dev/fd/3 {shlex.join(words)} 3<&0 </dev/null",
                stdin=text,
                check=check,
                timeout_s=INSTALL_WITHIN_S,
            )

    def install(self, *words: str, check: bool = True) -> Done:
        """Run install.sh of this clone, with the wheels of this clone."""
        command = shlex.join((f"{SOURCE}/deploy/install.sh", *words, "--wheels", WHEELS))
        return self.run(command, check=check, timeout_s=INSTALL_WITHIN_S)

    def uninstall(self) -> Done:
        return self.run(f"{SOURCE}/deploy/install.sh --uninstall", timeout_s=INSTALL_WITHIN_S)

    def kill_install(self, *words: str, line: str = "", file: str = "", alone: bool = False) -> str:
        """Kill install.sh at a step or once there is a file; return what it said until then."""
        where = ("line", f"== {line}") if line else ("file", file)
        done = self.inside(
            "interrupt.py",
            *(*where, "alone" if alone else "group"),
            *(f"{SOURCE}/deploy/install.sh", *words, "--wheels", WHEELS),
        )
        return done.err

    def estiba(self, *words: str) -> Any:
        """Return what a command of Estiba's answers in JSON."""
        return json.loads(self.run(shlex.join(("estiba", *words, "-o", "json"))).out)

    def token(self) -> str:
        return token_in(self.run("estiba cluster token create").out)

    # ---------------------------------------------------------------- what it is like

    def state(self) -> dict[str, Any]:
        """Return what there is of it: see `inside/state.py`."""
        return dict(json.loads(self.inside("state.py").out))

    def calm(self, replicas: int) -> dict[str, Any]:
        """Wait until a service has its replicas, all of them running; return the state then."""
        deadline = time.monotonic() + CALM_WITHIN_S
        while True:
            tasks = self.run("estiba service ps hello -o json", check=False)
            running = [
                task
                for task in json.loads(tasks.out or "[]")
                if task.get("status", {}).get("state") == "TASK_STATE_RUNNING"
            ]
            state = self.state() if len(running) == replicas else {}
            if state and len(state["containers"]) == replicas:
                return state
            assert time.monotonic() < deadline, f"{len(running)} of {replicas} run: {tasks}"

    # ---------------------------------------------------------------- its stages

    def _make_packages(self) -> None:
        """Killed at the first steps, and while dpkg was at work."""
        role = ("--role", "control-plane")
        self.kill_install(*role, line="Checks")
        self.kill_install(*role, line="Debian packages")
        self.kill_install(*role, file="/var/lib/dpkg/info/etcd-server.list")
        self.kill_install(*role, line="System users")
        # Those of an agent too, so that whoever compares finds no package's files.
        self.run("apt-get install -y --no-install-recommends nftables")

    def _make_programs(self) -> None:
        """Killed while pip was at work, which goes on: the next installation waits for it."""
        role = ("--role", "control-plane")
        self.kill_install(*role, line="Programs")
        self.kill_install(*role, file="/opt/estiba/versions/*/lib/python3*/site-packages/grpc")
        self.kill_install(
            *role, file="/opt/estiba/versions/*/lib/python3*/site-packages/grpc", alone=True
        )
        self.kill_install(*role, line="Units")

    def _make_controlled(self) -> None:
        role = ("--role", "control-plane", "--advertise-addr", ADDRESS)
        for at in ("Services", "Control plane"):
            self.kill_install(*role, line=at)
        self.kill_install(*role, file="/etc/estiba/estibad.toml")
        self.offered = self.install(*role).out
        if "estiba node join" not in self.offered:
            # It was killed when the cluster was made, and not asked to make a token again.
            self.offered = self.run("estiba cluster token create").out

    def _make_installed(self) -> None:
        self.run(f"umask 077; echo {token_in(self.offered)} >/root/token")
        agent = ("--role", "agent", "--join", ADDRESS, "--token-file", "/root/token")
        for at in ("Units", "Services", "Agent"):
            self.kill_install(*agent, line=at)
        self.kill_install(*agent, file="/var/lib/estiba/agent-pki/joining.pem")
        self.kill_install(*agent, file="/etc/estiba/agent.toml")
        self.install(*agent)

    def _make_serving(self) -> None:
        self.run(f"{PATIENCE} && systemctl restart estibad.service")
        self.run(REGISTRY)
        self._serve()

    def _serve(self) -> None:
        self.run(
            "estiba service create --name hello --replicas 2 --limit-memory 64m --limit-cpu 0.5 "
            "--limit-pids 50 registry.estiba:5000/hello"
        )
        self.calm(2)

    def _make_former(self) -> None:
        install = f"{FORMER_SOURCE}/deploy/install.sh --wheels {FORMER_WHEELS}"
        said = self.run(f"{install} --role control-plane", timeout_s=INSTALL_WITHIN_S).out
        self.run(
            f"ESTIBA_JOIN_TOKEN={token_in(said)} {install} --role agent --join {ADDRESS}",
            timeout_s=INSTALL_WITHIN_S,
        )
        self.run(REGISTRY)
        self._serve()


def token_in(said: str) -> str:
    (token,) = re.findall(r"estiba-1-\S+", said)
    return str(token)


@contextmanager
def installation(folder: Path, wheels: Wheels) -> Iterator[Installation]:
    """Have a bare machine, with what installs Estiba in it."""
    with Machine.start(build(RECIPE), folder) as machine:
        for source, target in (
            (wheels.source, SOURCE),
            (wheels.former_source, FORMER_SOURCE),
            (wheels.now, WHEELS),
            (wheels.former, FORMER_WHEELS),
        ):
            machine.copy_in(source, target)
        # The time-stamp counter runs on while a machine is away, and every watchdog would bite.
        machine.run("echo hpet >/sys/devices/system/clocksource/clocksource0/current_clocksource")
        machine.run("apt-get update")
        made = Installation(machine)
        made.keep("bare")
        yield made
