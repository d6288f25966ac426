"""`estiba dev`: start, show and stop a whole cluster on this machine."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from controlplane.cli import local
from controlplane.cli.errors import CliError
from controlplane.cli.groups import Verbs

F = TypeVar("F", bound=Callable[..., Any])


def _folder_option(command: F) -> F:
    return click.option(
        "--dir",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        default=lambda: local.folder(os.environ),
        show_default=f"ESTIBA_DIR, else {local.DEFAULT_FOLDER}",
        help="Where the cluster's files are.",
    )(command)


@click.group(cls=Verbs)
def command() -> None:
    """Run a whole cluster on this machine: etcd, a registry, two estibads, several nodes.

    Each node is a network namespace with its own agent. On the host itself nothing is made
    but ports on 127.0.0.1, and `estiba dev down` leaves nothing behind.
    """


@command.command()
@click.option("--nodes", type=click.IntRange(1, 100), help="How many nodes; 3 at first.")
@_folder_option
def up(folder: Path, nodes: int | None) -> None:
    """Start the cluster, or what of it does not run, and wait until all its nodes are ready.

    \b
    Examples:
      estiba dev up
      estiba dev up --nodes 5 --dir ~/five
    """
    from controlplane.cli.dev import lifecycle

    lifecycle.up(folder, nodes)


@command.command()
@click.option("--keep", is_flag=True, help="Keep what is declared, and images, for the next up.")
@_folder_option
def down(folder: Path, *, keep: bool) -> None:
    """Stop the cluster with all its containers, and remove everything it made.

    \b
    Examples:
      estiba dev down
      estiba dev down --keep
    """
    from controlplane.cli.dev import lifecycle

    lifecycle.down(folder, keep=keep)


@command.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@_folder_option
def status(folder: Path, output: str, *, quiet: bool) -> None:
    """Show the cluster's programs: whether they run, since when, how often they were restarted.

    \b
    Examples:
      estiba dev status
      estiba dev status -o json
    """
    from controlplane.cli import render
    from controlplane.cli.dev import lifecycle

    found = lifecycle.status(folder)
    if quiet:
        for program in found["programs"]:
            click.echo(program["name"])
    elif output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(render.programs(found["programs"], now_s=time.time()), nl=False)


@command.command()
@click.argument("program")
@click.option("--kill", is_flag=True, help="By SIGKILL, as a crash would.")
@_folder_option
def stop(folder: Path, program: str, *, kill: bool) -> None:
    """Stop one PROGRAM of the cluster until it is started again.

    \b
    Examples:
      estiba dev stop estibad-1
      estiba dev stop --kill n2-agent
    """
    from controlplane.cli.dev import lifecycle

    lifecycle.ask(folder, {"do": "stop", "name": program, "kill": kill})


@command.command()
@click.argument("program")
@_folder_option
def start(folder: Path, program: str) -> None:
    """Start one PROGRAM of the cluster that was stopped.

    \b
    Example:
      estiba dev start estibad-1
    """
    from controlplane.cli.dev import lifecycle

    lifecycle.ask(folder, {"do": "start", "name": program})


@command.command()
@click.argument("program")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--tail", type=click.IntRange(min=1), default=100, show_default=True, help="Lines.")
@_folder_option
def logs(folder: Path, program: str, tail: int, *, follow: bool) -> None:
    """Print what one PROGRAM of the cluster wrote.

    \b
    Examples:
      estiba dev logs estibad-1
      estiba dev logs -f --tail 20 n1-agent
    """
    path = folder / "log" / f"{program}.log"
    if not path.is_file():
        names = sorted(found.stem for found in (folder / "log").glob("*.log"))
        known = f"; there are {', '.join(names)}" if names else ""
        raise CliError(f"no log of {program} in {folder / 'log'}{known}")
    words = ["tail", f"--lines={tail}", *(["--follow=name"] if follow else []), str(path)]
    # tail becomes this process: it ends, and is interrupted, as if it had been typed.
    os.execvp(words[0], words)  # noqa: S606
