"""Errors become one sentence and an exit code; help imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.cli import main


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["service", "--help"], 0),
        (["completion", "bash"], 0),
        (["nonsense"], 2),
        (["service", "nonsense"], 2),
        (["service", "scale", "web"], 2),
        (["node", "update", "--availability", "sometimes", "n1"], 2),
        (["apply"], 2),
    ],
)
def test_the_exit_code_tells_whether_it_was_typed_rightly(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(words) == code
    said = capsys.readouterr()
    assert (said.out == "") == (code != 0)
    assert (said.err == "") == (code == 0)


def test_an_error_is_one_sentence_on_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESTIBA_DIR", str(tmp_path))
    monkeypatch.delenv("ESTIBA_SERVER", raising=False)
    assert main.run(["service", "ls"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"estiba: no cluster: none runs in {tmp_path}")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("command", sorted(main.COMMANDS))
def test_every_command_in_the_list_has_a_help(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([command, "--help"]) == 0
    assert command in capsys.readouterr().out


def test_help_imports_neither_grpc_nor_rich() -> None:
    script = (
        "import sys; from controlplane.cli import main; main.run(['service', 'create', '--help'])\n"
        "heavy = {'grpc', 'rich', 'google.protobuf', 'cryptography', 'yaml'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
