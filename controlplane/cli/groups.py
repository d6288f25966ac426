"""How a noun lists its verbs: each with its whole first sentence, not with the half that fits."""

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
