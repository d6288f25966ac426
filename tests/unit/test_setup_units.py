"""What is started by hand, and where commands look, is what the units of systemd say."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from controlplane.cli.errors import CliError
from controlplane.cli.setup import control_plane, leaving, membership, node
from controlplane.cli.setup.machine import Machine, Systemd
from controlplane.cli.setup.places import CGROUP_PARENT, Places
from estiba.kit.jointoken import JoinToken

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
REAL = Places()


def command_of(unit: str) -> list[str]:
    """Return what a unit executes, word by word."""
    text = (UNITS / unit).read_text().replace("\\\n", " ")
    found = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert found, unit
    return found[1].split()


def test_every_unit_that_is_started_exists() -> None:
    for unit in (*control_plane.UNITS, *node.UNITS):
        assert (UNITS / unit).is_file(), unit


def test_etcd_is_started_by_hand_as_by_its_unit() -> None:
    # systemd lends it a copy of the authority, in a folder whose name only systemd knows.
    by_unit = [
        re.sub(r"=\S*CREDENTIALS_DIRECTORY\}?/\S+$", f"={REAL.etcd_server.ca}", word)
        for word in command_of("estiba-etcd.service")
    ]
    assert sorted(by_unit) == sorted(control_plane.etcd_command(REAL))


def test_programs_find_each_other_where_their_units_say() -> None:
    launcher = command_of("estiba-launcher.service")
    assert launcher[1:] == [
        *("--state", str(REAL.launcher_state)),
        *("--socket", str(REAL.launcher_socket)),
        *("--log-pump-socket", str(REAL.log_pump_socket)),
        *("--cgroup-parent", CGROUP_PARENT),
    ]
    assert command_of("estiba-log-pump.service")[1:] == [
        *("--socket", str(REAL.log_pump_socket)),
        *("--launcher-socket", str(REAL.launcher_socket)),
    ]
    assert command_of("estiba-agent.service")[1:] == ["--config", str(REAL.agent_toml)]
    assert command_of("estibad.service")[1:] == ["--config", str(REAL.estibad_toml)]


# --------------------------------------------------------------------------- a systemd that listens


class Listening:
    """Takes note of what it is told; has the faults that it is given, by words of the command."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.faults: dict[str, str] = {}
        self.missing: set[str] = set()

    def __call__(self, argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        command = " ".join(argv)
        if "show" in argv:
            state = "not-found" if argv[-1] in self.missing else "loaded"
            return subprocess.CompletedProcess(argv, 0, f"{state}\n", "")
        self.told.append(command)
        for words, sentence in self.faults.items():
            if words in command:
                return subprocess.CompletedProcess(argv, 1, "", f"{sentence}\n")
        return subprocess.CompletedProcess(argv, 0, "", "")


@pytest.fixture
def listening() -> Listening:
    return Listening()


def test_units_that_are_not_installed_are_named_with_what_installs_them(
    listening: Listening,
) -> None:
    listening.missing = {"estibad.service"}
    with pytest.raises(CliError) as said:
        Systemd(listening).demand(control_plane.UNITS, "control-plane")
    assert str(said.value) == (
        "estibad.service is not installed: run deploy/install.sh --role control-plane first"
    )
    assert listening.told == []


def test_units_are_started_one_after_the_other_and_the_one_that_does_not_is_named(
    listening: Listening,
) -> None:
    listening.faults = {"estiba-launcher": "Job failed."}
    with pytest.raises(CliError) as said:
        Systemd(listening).start(node.UNITS)
    assert str(said.value) == (
        "estiba-launcher.service does not start: see `journalctl -u estiba-launcher.service`"
    )
    assert listening.told == [f"systemctl enable --quiet --now {unit}" for unit in node.UNITS[:3]]


def test_a_unit_that_there_is_not_is_stopped_and_one_that_does_not_stop_is_named(
    listening: Listening,
) -> None:
    listening.faults = {"estiba-agent": "Failed: Unit file estiba-agent.service does not exist."}
    Systemd(listening).stop(["estiba-agent.service", "estiba-launcher.service"])
    listening.faults = {"estiba-launcher": "Failed to connect to bus"}
    with pytest.raises(
        CliError, match=r"^estiba-launcher\.service does not stop: Failed to connect"
    ):
        Systemd(listening).stop(["estiba-launcher.service"])


def test_leaving_stops_the_agent_first_and_the_launcher_once_its_containers_are_gone(
    listening: Listening, tmp_path: Path
) -> None:
    places = Places(tmp_path)
    places.agent_pki.mkdir(parents=True)
    places.node.cert.write_text("a key")

    leaving.leave(Machine(places, Systemd(listening)))

    assert listening.told == [
        f"systemctl disable --quiet --now estiba-{name}.service"
        for name in ("agent", "launcher", "log-pump", "containers")
    ]
    assert not leaving.is_node(places)


def test_a_node_that_cannot_be_cleared_keeps_its_configuration(
    listening: Listening, tmp_path: Path
) -> None:
    places = Places(tmp_path)
    places.etc.mkdir(parents=True)
    places.agent_toml.write_text("not a configuration")

    with pytest.raises(CliError, match=r"^this machine is still a node: .*agent\.toml"):
        leaving.leave(Machine(places, Systemd(listening)))

    assert leaving.is_node(places)
    assert listening.told == [
        "systemctl disable --quiet --now estiba-agent.service",
        "systemctl start estiba-launcher.service",
    ]


def test_a_machine_is_a_node_of_nothing_while_a_file_is_missing(tmp_path: Path) -> None:
    token = JoinToken("a" * 52, "b" * 8, "c" * 26)
    places = Places(tmp_path)
    assert not node.is_joined(places, token, 0.0)
    places.etc.mkdir(parents=True)
    places.agent_toml.write_text("")
    assert not node.is_joined(places, token, 0.0)


def test_a_token_that_is_none_is_refused_before_the_machine_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ESTIBA_ROOT", str(tmp_path))
    text = str(JoinToken("a" * 52, "b" * 8, "c" * 26))
    with pytest.raises(CliError, match="hostname: 'no name' is no host name"):
        membership.join(text, "192.0.2.1", advertise="", hostname="no name")
    assert list(tmp_path.iterdir()) == []
