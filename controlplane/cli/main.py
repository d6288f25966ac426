"""The command line `estiba`: which commands there are, and what happens to their errors."""

import os
import sys
from pathlib import Path

import click

from controlplane.cli.context import Session
from controlplane.cli.errors import CliError
from controlplane.cli.groups import Parts

# Name: module, and the sentence in the list of commands.
COMMANDS = {
    "apply": ("controlplane.cli.apply", "Create or change services from a file."),
    "cluster": ("controlplane.cli.cluster", "Make a cluster, and admit machines to it."),
    "completion": ("controlplane.cli.completion", "Print what makes a shell complete commands."),
    "dev": ("controlplane.cli.dev.commands", "Run a whole cluster on this machine."),
    "info": ("controlplane.cli.info", "Show the cluster and its control plane."),
    "node": ("controlplane.cli.node", "Show and change nodes."),
    "service": ("controlplane.cli.service", "Declare, show and change services."),
}

INTERRUPTED = 130


@click.group(
    cls=Parts,
    parts=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `estiba cluster init`, or on one machine alone with `estiba dev up`; then "
    "`estiba service create --name web IMAGE`.",
)
@click.option(
    "--server",
    multiple=True,
    metavar="HOST:PORT",
    help="A member of the cluster; may be given several times. Default: ESTIBA_SERVER, else the "
    "cluster of `estiba dev up`, else the one that this machine controls.",
)
@click.option(
    "--tls-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with ca.pem, cert.pem and, unless the key is in there too, key.pem to identify "
    "yourself with. Default: ESTIBA_TLS_CA, ESTIBA_TLS_CERT and ESTIBA_TLS_KEY, else those of the "
    "cluster on this machine.",
)
@click.version_option(package_name="estiba", prog_name="estiba")
@click.pass_context
def cli(ctx: click.Context, server: tuple[str, ...], tls_dir: Path | None) -> None:
    """Declare services; Estiba decides where they run, runs them, and says why."""
    ctx.obj = Session(server, tls_dir)


def main() -> None:
    """Run one command; its errors become one sentence and an exit code."""
    # gRPC would write its own view of broken connections between our lines.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    try:
        code = cli.main(words, prog_name="estiba", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"estiba: {error.format_message()}", err=True)
        return error.exit_code
    except CliError as error:
        click.echo(f"estiba: {error}", err=True)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is left of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
