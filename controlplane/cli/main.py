"""The command line `estiba`: which commands there are, and what happens to their errors.

A command's module is imported when the command is used, so that help comes at once.
"""

import os
import sys
from importlib import import_module
from pathlib import Path

import click

from controlplane.cli.context import Session
from controlplane.cli.errors import CliError

# Name: module, and the sentence in the list of commands.
COMMANDS = {
    "apply": ("controlplane.cli.apply", "Create or change services from a file."),
    "completion": ("controlplane.cli.completion", "Print what makes a shell complete commands."),
    "dev": ("controlplane.cli.dev.commands", "Run a whole cluster on this machine."),
    "info": ("controlplane.cli.info", "Show the cluster and its control plane."),
    "node": ("controlplane.cli.node", "Show and change nodes."),
    "service": ("controlplane.cli.service", "Declare, show and change services."),
}

INTERRUPTED = 130


class Nouns(click.Group):
    """A group whose commands are imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in sorted(COMMANDS.items())])


@click.group(
    cls=Nouns,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `estiba dev up`, then `estiba service create --name web IMAGE`.",
)
@click.option(
    "--server",
    multiple=True,
    metavar="HOST:PORT",
    help="A member of the cluster; may be given several times. Default: ESTIBA_SERVER, else the "
    "cluster of `estiba dev up`.",
)
@click.option(
    "--tls-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with ca.pem, cert.pem and, unless the key is in there too, key.pem to identify "
    "yourself with. Default: "
    "ESTIBA_TLS_CA, ESTIBA_TLS_CERT and ESTIBA_TLS_KEY, else those of the local cluster.",
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
