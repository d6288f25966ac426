"""`estiba cluster init`: make this machine a control plane, and say how others join."""

import datetime
import shlex
import socket
from typing import TYPE_CHECKING

import click

from controlplane.cli.context import Session, pass_session, say
from controlplane.cli.errors import CliError

if TYPE_CHECKING:
    from controlplane.cli.setup.machine import Machine

READY_WITHIN_S = 120.0


@click.command()
@click.option(
    "--advertise-addr",
    default="",
    metavar="ADDRESS|LINK",
    help="Where other machines reach this one; needed if it has several addresses.",
)
@click.option("--name", default="default", show_default=True, help="What the cluster is called.")
@pass_session
def command(session: Session, advertise_addr: str, name: str) -> None:
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
    from controlplane.cli.setup import control_plane
    from controlplane.cli.setup.machine import Machine, demand_ports

    machine = Machine.here()
    machine.demand_root()
    if machine.systemd is not None:
        machine.systemd.demand(control_plane.UNITS, "control-plane")
    with machine.alone():
        is_new = not control_plane.is_initialised(machine.places)
        if is_new:
            address = _address(machine, advertise_addr)
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
    if not is_new:
        say("this machine is a control plane already; `estiba cluster token create` admits others")
    elif machine.systemd is None:
        _tell_by_hand(machine)
    else:
        _tell_how_to_join(session)


def _address(machine: "Machine", said: str) -> str:
    from controlplane.cli.setup import addresses

    return addresses.choose(machine.addresses(), said)


def _tell_by_hand(machine: "Machine") -> None:
    from controlplane.cli.setup import control_plane
    from controlplane.cli.setup.machine import PROGRAMS

    places = machine.places
    estibad = [str(PROGRAMS / "estibad"), "--config", str(places.estibad_toml)]
    say("everything is made; systemd does not run here, so start by hand, and keep running:")
    for argv in (control_plane.etcd_command(places), estibad):
        click.echo(shlex.join(argv))
    say("then `estiba cluster token create` says how other machines join")


def _tell_how_to_join(session: Session) -> None:
    from estiba.v1 import control_pb2

    session.connection.call(
        lambda stub: stub.GetCluster, control_pb2.GetClusterRequest(), patience_s=READY_WITHIN_S
    )
