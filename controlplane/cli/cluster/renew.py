"""`estiba cluster renew`: keep the certificates of a control plane's own machine good."""

import datetime

import click

from controlplane.cli.context import say
from controlplane.cli.errors import CliError


@click.command()
@click.option("--force", is_flag=True, help="Also those that are not past half of their life.")
def command(*, force: bool) -> None:
    """Renew the certificates of this control plane's own programs that are past half of their life.

    A timer types it daily. The programs take new certificates over by themselves. Nodes renew
    theirs without help.

    \b
    Examples:
      estiba cluster renew
      estiba cluster renew --force
    """
    from controlplane.cli.setup import control_plane
    from controlplane.cli.setup.machine import Machine

    machine = Machine.here()
    machine.demand_root()
    now = datetime.datetime.now(datetime.UTC)
    with machine.alone():
        try:
            renewed = control_plane.renew(machine, now, force=force)
            due = control_plane.next_renewal(machine.places)
        except ValueError as fault:
            raise CliError(str(fault)) from fault
    for name in renewed:
        click.echo(name)
    if not renewed:
        say(f"no certificate is past half of its life; the first will be on {due:%Y-%m-%d}")
