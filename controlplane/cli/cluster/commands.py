"""The verbs of `estiba cluster`."""

import click

from controlplane.cli.cluster import tokens
from controlplane.cli.groups import Verbs


@click.group(cls=Verbs)
def command() -> None:
    """Make a cluster, and admit machines to it."""


command.add_command(tokens.command, "token")
