"""What the command line says when it cannot do what was asked: one sentence, exit code 1."""


class CliError(Exception):
    """The message is a whole sentence for the person who typed the command."""
