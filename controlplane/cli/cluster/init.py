"""`estiba cluster init`: make this machine a control plane, and say how others join."""

import datetime
import shlex
import socket
from typing import TYPE_CHECKING

import click

from controlplane.cli import params
from controlplane.cli.context import say
from controlplane.cli.errors import CliError

if TYPE_CHECKING:
    from controlplane.cli.setup.machine import Machine
    from controlplane.cli.setup.places import Places

READY_WITHIN_S = 120.0


@click.command()
@click.option(
    "--advertise-addr",
    default="",
    metavar="ADDRESS|LINK",
    help="Where other machines reach this one; needed if it has several addresses.",
)
@click.option(
    "--name",
    type=params.NAME,
    default="default",
    show_default=True,
    help="What the cluster is called.",
)
def command(advertise_addr: str, name: str) -> None:
    """Make this machine the control plane of a new cluster, and print how others join it.

    It makes the cluster's authorities, certificates and configuration, starts etcd and
    estibad, and prints a command to type on other machines. On a machine that is a control
    plane already it changes nothing.

    \b
    Examples:
      estiba cluster init
      estiba cluster init --advertise-addr 192.0.2.10
      estiba cluster init --advertise-addr eth1 --name harbour
    """
    from controlplane.cli.setup import addresses, control_plane
    from controlplane.cli.setup.machine import Machine, demand_ports

    machine = Machine.here()
    machine.demand_root()
    if machine.systemd is not None:
        machine.systemd.demand(control_plane.UNITS, "control-plane")
    address = ""
    with machine.alone():
        if not control_plane.is_initialised(machine.places):
            address = addresses.choose(machine.addresses(), advertise_addr)
            demand_ports(control_plane.PORTS)
            try:
                control_plane.initialise(
                    machine,
                    address=address,
                    name=name,
                    member_id=socket.gethostname(),
                    now=datetime.datetime.now(datetime.UTC),
                )
            except ValueError as fault:
                raise CliError(str(fault)) from fault
        if machine.systemd is not None:
            machine.systemd.start(control_plane.UNITS)
    if not address:
        say("this machine is a control plane already; `estiba cluster token create` admits others")
    elif machine.systemd is None:
        _tell_by_hand(machine)
    else:
        tell_how_to_join(machine.places, address)


def _tell_by_hand(machine: "Machine") -> None:
    from controlplane.cli.setup import control_plane
    from controlplane.cli.setup.machine import PROGRAMS

    places = machine.places
    estibad = [str(PROGRAMS / "estibad"), "--config", str(places.estibad_toml)]
    say("everything is made; systemd does not run here, so start by hand, and keep running:")
    for argv in (control_plane.etcd_command(places), estibad):
        click.echo(shlex.join(argv))
    say("then `estiba cluster token create` says how other machines join")


def tell_how_to_join(places: "Places", address: str) -> None:
    from controlplane.cli.cluster import tokens
    from controlplane.cli.connection import Connection, Target
    from controlplane.cli.setup.places import API_PORT
    from estiba.v1 import control_pb2

    connection = Connection(Target((f"{address}:{API_PORT}",), places.admin), tell=say)
    asked = control_pb2.GetClusterRequest()
    answer = connection.call(lambda stub: stub.GetCluster, asked, patience_s=READY_WITHIN_S)
    say(f"cluster {answer.cluster.name} is made, and this machine is its control plane")
    tokens.offer(tokens.make(connection))
    connection.close()
