"""How a noun lists its verbs: each with its whole first sentence, not with the half that fits."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

LONGEST_SENTENCE = 200


class Verbs(click.Group):
    """A group whose help shows what each command does in one whole sentence."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            rows = [
                (name, command.get_short_help_str(limit=LONGEST_SENTENCE))
                for name, command in sorted(self.commands.items())
            ]
            formatter.write_dl(rows)


class Parts(click.Group):
    """A group whose commands are imported when they are used, so that help comes at once."""

    def __init__(self, *args: Any, parts: Mapping[str, tuple[str, str]], **settings: Any) -> None:
        """``parts``: by name, the module that has the command, and its sentence in the list."""
        super().__init__(*args, **settings)
        self._parts = parts

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._parts)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._parts:
            return None
        command = import_module(self._parts[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            rows = [(name, sentence) for name, (_, sentence) in sorted(self._parts.items())]
            formatter.write_dl(rows)
