"""Whatever a killed supervisor left is found and ended."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.cli.dev import leftovers
from tests.support import cgroups
from tests.support.waiting import stretched


@pytest.fixture
def group(tmp_path: Path) -> Iterator[str]:
    name = f"/estiba-test-{os.getpid()}"
    yield name
    leftovers.remove_cgroups(name)


def start(folder: Path | None = None) -> "subprocess.Popen[bytes]":
    mark = {leftovers.MARK: str(folder)} if folder is not None else {}
    return subprocess.Popen(["sleep", "1000"], env=os.environ | mark)


def test_processes_of_a_folder_are_killed_and_those_of_others_are_not(tmp_path: Path) -> None:
    ours = [start(tmp_path / "a"), start(tmp_path / "a")]
    others = [start(tmp_path / "ab"), start()]
    try:
        assert leftovers.kill_marked(tmp_path / "a") == 2
        assert [process.wait(timeout=stretched(5)) for process in ours] == [-9, -9]
        assert [process.poll() for process in others] == [None, None]
        assert leftovers.kill_marked(tmp_path / "a") == 0
    finally:
        for process in (*ours, *others):
            process.kill()
            process.wait()


def test_cgroups_are_emptied_and_removed_in_every_hierarchy(group: str) -> None:
    process = start()
    trees = [mount / group.lstrip("/") / "n1" / "c1" for mount in leftovers.cgroup_mounts()]
    made = []
    for tree in trees:
        # A cpuset takes no process before it has processors and memory.
        if "cpuset" not in str(tree):
            tree.mkdir(parents=True)
            (tree / "cgroup.procs").write_text(str(process.pid))
            made.append(tree)
    assert made

    leftovers.remove_cgroups(group)

    assert process.wait(timeout=stretched(5)) == -9
    assert not [tree for tree in trees if tree.parent.parent.exists()]


def test_a_frozen_container_is_killed_too(group: str) -> None:
    tree = cgroups.folder_of(f"{group}/c1", "freezer")
    tree.mkdir(parents=True)
    process = start()
    (tree / "cgroup.procs").write_text(str(process.pid))
    cgroups.freeze(f"{group}/c1")

    leftovers.remove_cgroups(group)

    assert process.wait(timeout=stretched(5)) == -9
    assert not tree.parent.exists()


def test_a_group_that_is_not_there_is_no_error(group: str) -> None:
    leftovers.remove_cgroups(group)
