"""`estiba completion`: what makes a shell complete commands, flags and names."""

import click
from click.shell_completion import get_completion_class

from controlplane.cli.errors import CliError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print what makes a SHELL complete estiba's commands, flags, services and nodes.

    \b
    Examples:
      source <(estiba completion bash)
      estiba completion fish > ~/.config/fish/completions/estiba.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise CliError(f"there is no completion for {shell}")
    click.echo(found(ctx.find_root().command, {}, "estiba", "_ESTIBA_COMPLETE").source())
