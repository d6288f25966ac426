"""The verbs of `estiba cluster`."""

import click

from controlplane.cli.groups import Parts

PARTS = {
    "init": (
        "controlplane.cli.cluster.init",
        "Make this machine the control plane of a new cluster.",
    ),
    "renew": (
        "controlplane.cli.cluster.renew",
        "Renew this control plane's own certificates that are past half of their life.",
    ),
    "token": (
        "controlplane.cli.cluster.tokens",
        "Make, show and remove the tokens by which machines join.",
    ),
}


@click.group(cls=Parts, parts=PARTS)
def command() -> None:
    """Make a cluster on this machine, and admit other machines to it."""
