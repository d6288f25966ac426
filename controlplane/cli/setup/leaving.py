"""Have this machine be no node any more: no container, no key, no configuration of one.

The configuration goes last, so that what was interrupted can be done again.
"""

from pathlib import Path

from controlplane.cli.errors import CliError
from controlplane.cli.setup.machine import (
    PROGRAMS,
    Machine,
    remove,
    remove_tree,
    run,
)
from controlplane.cli.setup.node import UNITS
from controlplane.cli.setup.places import Places

AGENT, LAUNCHER = "estiba-agent.service", "estiba-launcher.service"


def is_node(places: Places) -> bool:
    """Say whether there is anything of a node here."""
    return any(path.exists() for path in _everything(places))


def leave(machine: Machine) -> None:
    """Safe to repeat.

    Raises:
        CliError: something cannot be stopped or removed, and the configuration stays.
        OSError: the disk refuses.
    """
    places = machine.places
    if machine.systemd is not None:
        machine.systemd.stop([AGENT])
    if places.agent_toml.exists():
        _clear(machine)
    if machine.systemd is not None:
        machine.systemd.stop([unit for unit in reversed(UNITS) if unit != AGENT])
    for path in _everything(places):
        remove_tree(path)
    for folder in (places.etc, places.run):
        remove(folder)


def _clear(machine: Machine) -> None:
    """Stop containers, in good order if there is a launcher, and remove what the agent made."""
    if machine.systemd is not None:
        machine.systemd.try_to_start(LAUNCHER)
    words = ["--config", str(machine.places.agent_toml), "--clear"]
    done = run([str(PROGRAMS / "estiba-agent"), *words])
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise CliError(f"this machine is still a node: {reason}")


def _everything(places: Places) -> tuple[Path, ...]:
    return (
        places.launcher_state,
        places.agent_state,
        places.agent_pki,
        places.node.ca,
        places.agent_toml,
    )
