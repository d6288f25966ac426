"""Every command the documentation shows works as it stands there, in the order it stands there."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.dev import DevCluster

ROOT = Path(__file__).parents[2]


def commands(page: str) -> list[str]:
    """Return the lines after ``$`` of the page's console blocks."""
    blocks = (ROOT / page).read_text().split("```console\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("page", ["README.md", "deploy/OPERATIONS.md"])
def test_every_command_of_the_page_works(cluster: DevCluster, page: str) -> None:
    shown = commands(page)
    assert shown
    script = "set -e\n" + "\n".join(shown)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env=os.environ | {"ESTIBA_DIR": str(cluster.folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
