"""Tests of one version of cgroups, or of some kernels: chosen when found, and missed when lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cgroups import VERSION

ROOT = Path(__file__).parents[2]
OTHER = 3 - VERSION

SOME = f"""\
import pytest

def test_of_everywhere(): pass

@pytest.mark.cgroup({VERSION})
def test_of_this_version(): pass

@pytest.mark.cgroup({OTHER})
def test_of_the_other_version(): pass

@pytest.mark.linux_since(2, 6)
def test_of_this_kernel(): pass

@pytest.mark.linux_before(2, 6)
def test_of_an_older_kernel(): pass

@pytest.mark.linux_since(999, 0)
def test_of_a_newer_kernel(): pass
"""


def ran(folder: Path, *options: str) -> tuple[int, str]:
    (folder / "test_some.py").write_text(SOME)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", *options, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_those_of_this_machine_run_and_the_others_are_not_there(tmp_path: Path) -> None:
    code, said = ran(tmp_path, "-vv")
    assert code == 0
    assert "3 passed, 3 deselected" in said
    for name in ("everywhere", "this_version", "this_kernel"):
        assert f"test_of_{name} PASSED" in said


@pytest.mark.parametrize(("at_least", "code"), [(3, 0), (4, 1)])
def test_a_run_of_fewer_than_there_must_be_fails(tmp_path: Path, at_least: int, code: int) -> None:
    ended, said = ran(tmp_path, "--at-least", str(at_least))
    assert ended == code
    assert ("3 tests passed, not 4: some were not found" in said) == (code != 0)
