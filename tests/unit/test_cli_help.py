"""Help says what each command does, and every example in it is one that can be typed."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from controlplane.cli import main


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that is no group of others."""
    if not isinstance(command, click.Group):
        yield words
        return
    ctx = click.Context(command)
    for name in command.list_commands(ctx):
        found = command.get_command(ctx, name)
        assert found is not None
        yield from leaves(found, (*words, name))


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words begin with, and the words after it."""
    command: click.Command = main.cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command, words


LEAVES = sorted(leaves(main.cli))


def examples(words: tuple[str, ...]) -> list[str]:
    command, _ = resolve(list(words))
    _, found, shown = (command.help or "").partition("Example")
    assert found, f"the help of {' '.join(words)} shows no example"
    return [line.strip() for line in shown.splitlines()[1:] if line.strip()]


def typed(line: str) -> Iterator[list[str]]:
    """Yield the words of each estiba command in a line of shell."""
    # What a substitution gives is some word; what it runs is a command as well.
    substituted = line.replace("$(", "NAME (")
    reader = shlex.shlex(substituted, posix=True, punctuation_chars="|;<>()")
    reader.whitespace_split = True
    words: list[str] = []
    for word in [*reader, ";"]:
        if re.fullmatch(r"[|;<>()]+", word):
            if words[:1] == ["estiba"]:
                yield words[1:]
            words = []
        else:
            words.append(word)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_example_in_a_help_can_be_typed(words: tuple[str, ...]) -> None:
    for line in examples(words):
        commands = list(typed(line))
        assert commands, line
        for command in commands:
            found, rest = resolve(command)
            found.make_context(command[0], rest)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_flag_says_what_it_is_for(words: tuple[str, ...]) -> None:
    command, _ = resolve(list(words))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(words)} {parameter.opts[-1]}"


@pytest.mark.parametrize("noun", ["service", "node", "dev"])
def test_a_list_of_commands_breaks_off_no_sentence(
    noun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([noun, "--help"]) == 0
    shown = capsys.readouterr().out.partition("Commands:")[2]
    assert "..." not in shown
    assert shown.rstrip().endswith(".")


LISTS = [("service", "ls"), ("service", "ps"), ("node", "ls"), ("dev", "status")]


@pytest.mark.parametrize("words", LISTS, ids=" ".join)
def test_every_list_can_be_had_as_json_and_as_names_alone(words: tuple[str, str]) -> None:
    command, _ = resolve(list(words))
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {"-o", "--output", "-q", "--quiet"} <= flags
