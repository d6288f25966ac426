"""The first command of the README, typed twice, and its --down."""

import os
import subprocess
from pathlib import Path

from tests.support.footprint import Footprint

SCRIPT = Path(__file__).parents[2] / "deploy" / "quickstart.sh"


def quickstart(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [str(SCRIPT), *words],
        env=os.environ | {"ESTIBA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_three_replicas_that_answer_may_be_typed_again_and_goes_without_a_trace(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "quick"
    before = Footprint.take()
    try:
        for _ in range(2):
            said = quickstart(folder)
            for slot in (1, 2, 3):
                assert f"hello from hello.{slot}, you asked for /" in said
    finally:
        quickstart(folder, "--down")
    assert before.left_behind() == []
    assert not folder.exists()
