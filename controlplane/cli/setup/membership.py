"""What `estiba node join` and `estiba node leave` do, in order, and what they say of it."""

import shlex
import time

import click

from controlplane.authority import requests
from controlplane.cli.context import say, warn
from controlplane.cli.errors import CliError
from controlplane.cli.setup import joinclient, leaving, node
from controlplane.cli.setup.machine import PROGRAMS, Machine, demand_ports
from controlplane.cli.setup.places import CGROUP_PARENT, Places
from estiba.kit import jointoken


def join(token: str, address: str, *, advertise: str, hostname: str) -> None:
    """Raise CliError if this machine cannot be a node; nothing is half-made then."""
    machine = Machine.here()
    machine.demand_root()
    try:
        wanted = node.Wanted(
            jointoken.parse(token), joinclient.parse_address(address), advertise, hostname
        )
        requests.check_hostname(hostname)
    except ValueError as fault:
        raise CliError(str(fault)) from fault
    if machine.systemd is not None:
        machine.systemd.demand(node.UNITS, "agent")
    with machine.alone():
        is_joined = node.is_joined(machine.places, wanted.token, time.time())
        if is_joined:
            said = "this machine is a node of this cluster already"
        else:
            if not machine.places.agent_toml.exists():
                demand_ports(node.PORTS)
            joined = node.join(machine, wanted)
            said = f"this machine is node {joined.node_id} of cluster {joined.cluster_name} now"
        if machine.systemd is not None:
            machine.systemd.start(node.UNITS)
            if not is_joined:
                node.wait_for_session(machine.places)
    say(said)
    if machine.systemd is None:
        _tell_by_hand(machine.places)
    elif is_joined:
        warn(fault for fault in [node.session_fault(machine.places)] if fault)


def leave() -> None:
    """Raise CliError if something cannot be stopped or removed; it may be typed again."""
    machine = Machine.here()
    machine.demand_root()
    with machine.alone():
        is_node = leaving.is_node(machine.places)
        if is_node:
            leaving.leave(machine)
    if not is_node:
        say("this machine is no node")
        return
    say("this machine is no node any more; `estiba node rm` has its cluster forget it")
    if machine.systemd is None:
        say("stop its launcher and its log pump by hand")


def _tell_by_hand(places: Places) -> None:
    say("systemd does not run here, so start by hand, and keep running:")
    launcher, pump = str(places.launcher_socket), str(places.log_pump_socket)
    for argv in (
        ["estiba-log-pump", "--socket", pump, "--launcher-socket", launcher],
        [
            *("estiba-launcher", "--state", str(places.launcher_state), "--socket", launcher),
            *("--log-pump-socket", pump, "--cgroup-parent", CGROUP_PARENT),
        ],
        ["estiba-agent", "--config", str(places.agent_toml)],
    ):
        click.echo(shlex.join([str(PROGRAMS / argv[0]), *argv[1:]]))
