"""Packages are installed with their services held back, whatever happens meanwhile.

apt-get and dpkg-query are stood in for: what is tested is what the scripts do to the machine
around them.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import eventually

LIBRARY = Path(__file__).parents[2] / "deploy" / "lib" / "packages.sh"

SCRIPT = f"""
set -eu
die() {{ echo "$*" >&2; exit 1; }}
. {LIBRARY}
policy=$1
shift
install_packages "$@"
echo done
"""

APT_GET = """\
#!/bin/sh
"$POLICY" etcd start || echo "policy says $?" >> "$LOG"
echo "$*" >> "$LOG"
touch "$LOG.began"
[ -z "${STAY:-}" ] || while :; do sleep 0.05; done
"""

DPKG_QUERY = """\
#!/bin/sh
for package; do :; done
[ "$package" = present ] && printf installed
"""


class Machine:
    def __init__(self, folder: Path) -> None:
        self.policy = folder / "policy-rc.d"
        self.log = folder / "log"
        programs = folder / "bin"
        programs.mkdir()
        for name, text in (("apt-get", APT_GET), ("dpkg-query", DPKG_QUERY)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self._environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "POLICY": str(self.policy),
            "LOG": str(self.log),
        }

    def begin(self, *packages: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["sh", "-c", SCRIPT, "install", str(self.policy), *packages],
            env=self._environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def install(self, *packages: str) -> tuple[int, str]:
        process = self.begin(*packages)
        _, err = process.communicate(timeout=10)
        return process.returncode, err

    @property
    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_services_are_held_back_while_packages_are_installed_and_not_after(
    machine: Machine,
) -> None:
    assert machine.install("present", "absent")[0] == 0
    policy, apt_get = machine.logged
    assert policy == "policy says 101"
    assert apt_get.endswith("install -y --no-install-recommends absent")
    assert not machine.policy.exists()


def test_nothing_is_done_when_everything_is_there(machine: Machine) -> None:
    assert machine.install("present")[0] == 0
    assert machine.logged == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_installation_leaves_no_policy(
    machine: Machine, number: signal.Signals
) -> None:
    process = machine.begin("absent", STAY="yes")
    eventually(machine.log.with_name("log.began").exists, within_s=10, what="apt-get runs")
    os.killpg(process.pid, number)
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert not machine.policy.exists()


def test_a_policy_that_a_killed_installation_left_is_taken_over(machine: Machine) -> None:
    process = machine.begin("absent", STAY="yes")
    eventually(machine.log.with_name("log.began").exists, within_s=10, what="apt-get runs")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert machine.policy.exists()
    assert machine.install("absent")[0] == 0
    assert not machine.policy.exists()


def test_a_policy_of_somebody_else_that_holds_services_back_is_left_as_it_is(
    machine: Machine,
) -> None:
    machine.policy.write_text("#!/bin/sh\nexit 101\n")
    machine.policy.chmod(0o755)
    assert machine.install("absent")[0] == 0
    assert machine.policy.read_text() == "#!/bin/sh\nexit 101\n"


def test_a_policy_of_somebody_else_that_lets_services_start_ends_the_installation(
    machine: Machine,
) -> None:
    machine.policy.write_text("#!/bin/sh\nexit 0\n")
    machine.policy.chmod(0o755)
    code, err = machine.install("absent")
    assert code == 1
    assert "absent" in err
    assert machine.logged == []
    assert machine.policy.read_text() == "#!/bin/sh\nexit 0\n"
