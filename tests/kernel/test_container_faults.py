"""What cannot be started says so in one sentence, and leaves nothing behind."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.errors import LauncherLostError, LaunchError
from agent.launcher import Launcher
from tests.support.containers import BIN, Node, cgroup_folders

Change = Callable[[dict[str, Any]], None]


@contextmanager
def leaving_nothing(node: Node) -> Iterator[None]:
    """Check that a failure leaves no process, cgroup, folder, descriptor or record."""
    descriptors = Path(f"/proc/{node.pid('launcher')}/fd")
    before = len(list(descriptors.iterdir()))
    yield
    children = Path(f"/proc/{node.pid('launcher')}/task/{node.pid('launcher')}/children")
    assert children.read_text() == ""
    assert cgroup_folders(node.cgroup_parent) == []
    assert [path.name for path in (node.folder / "state").iterdir()] == ["lock"]
    assert len(list(descriptors.iterdir())) == before
    for name in ("rootfs", "upper", "work"):
        assert not list(node.folder.glob(f"containers/*/{name}"))


@pytest.mark.parametrize(
    ("args", "settings", "stage", "sentence"),
    [
        (["foo"], {}, "command", "command not found: foo"),
        (["/no/such"], {}, "command", "command not found: /no/such"),
        (["/etc"], {}, "command", "permission denied: /etc"),
        (["/etc/passwd"], {}, "command", "permission denied: /etc/passwd"),
        (["true"], {"env": ["PATH=/nowhere"]}, "command", "command not found: true"),
        (["true"], {"user": "nobody2"}, "user", "user nobody2 is not in the image's /etc/passwd"),
        (["true"], {"user": "ana:gone"}, "user", "group gone is not in the image's /etc/group"),
        (["true"], {"user": "99999999999"}, "user", "user 99999999999 is above 2147483647"),
        (
            ["true"],
            {"cwd": "/etc/passwd"},
            "workdir",
            "working directory /etc/passwd is not a folder",
        ),
        (
            ["true"],
            {"cwd": "/etc/passwd/below"},
            "workdir",
            "working directory /etc/passwd/below is not a folder",
        ),
    ],
)
async def test_a_fault_of_the_image_is_one_sentence(
    node: Node, args: list[str], settings: dict[str, Any], stage: str, sentence: str
) -> None:
    with leaving_nothing(node):
        with pytest.raises(LaunchError) as refused:
            await node.run("c", *args, **settings)
        assert (refused.value.stage, str(refused.value)) == (stage, sentence)
        assert await node.launcher.list() == []
        # The pump lets go of the pipes of what never ran.
        await node.launcher.remove("c")
        await node.until(lambda: _pipes(node) == 0, "the pipes are closed")


async def test_a_program_without_its_interpreter_says_so(node: Node, tmp_path: Path) -> None:
    program = tmp_path / "more/app"
    program.parent.mkdir()
    program.write_text("#!/usr/bin/none\n")
    program.chmod(0o755)
    with pytest.raises(LaunchError) as refused:
        await node.run("c", "/app", layers=[node.layer, program.parent])
    assert str(refused.value) == "/app needs an interpreter that the image does not have"


async def test_a_file_that_is_no_program_says_so(node: Node, tmp_path: Path) -> None:
    program = tmp_path / "more/app"
    program.parent.mkdir()
    program.write_bytes(b"\x7fELFnothing")
    program.chmod(0o755)
    with pytest.raises(LaunchError) as refused:
        await node.run("c", "/app", layers=[node.layer, program.parent])
    assert str(refused.value) == "/app is not a program that this machine can execute"


def _drop_args(spec: dict[str, Any]) -> None:
    spec["process"]["args"] = []


def _drop_linux(spec: dict[str, Any]) -> None:
    del spec["linux"]


def _no_layers(spec: dict[str, Any]) -> None:
    spec["annotations"]["org.estiba.layers"] = "[]"


def _strange_capability(spec: dict[str, Any]) -> None:
    spec["process"]["capabilities"]["bounding"] = ["CAP_FLY"]


def _sysctl_of_the_node(spec: dict[str, Any]) -> None:
    spec["linux"]["sysctl"]["kernel.panic"] = "1"


def _lost_layer(spec: dict[str, Any]) -> None:
    spec["annotations"]["org.estiba.layers"] = json.dumps(["/no/such/layer"])


def _lost_source(spec: dict[str, Any]) -> None:
    mount = {"destination": "/x", "type": "bind", "source": "/no/such/file", "options": []}
    spec["mounts"].append(mount)


@pytest.mark.parametrize(
    ("change", "stage", "words"),
    [
        (_drop_args, "command", "there is no command to run"),
        (_drop_linux, "bundle", "lacks 'linux'"),
        (_no_layers, "bundle", "no layers"),
        (_strange_capability, "bundle", "CAP_FLY"),
        (_sysctl_of_the_node, "bundle", "kernel.panic"),
        (_lost_layer, "root", "/no/such/layer: No such file or directory"),
        (_lost_source, "root", "/no/such/file: No such file or directory"),
    ],
)
async def test_a_fault_of_the_bundle_is_one_sentence(
    node: Node, change: Change, stage: str, words: str
) -> None:
    with leaving_nothing(node):
        with pytest.raises(LaunchError) as refused:
            await node.run("c", "true", change=change)
        assert refused.value.stage == stage
        assert words in str(refused.value)
        await node.until(lambda: _pipes(node) == 0, "the pipes are closed")


async def test_a_bundle_that_is_not_there_is_named(node: Node, tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as refused:
        await node.launcher.create("c", tmp_path / "none")
    assert refused.value.stage == "bundle"
    assert "none/config.json: No such file or directory" in str(refused.value)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 201, "new\nline"])
async def test_an_id_that_could_leave_its_folder_is_refused(node: Node, name: str) -> None:
    for ask in (node.launcher.create(name, node.folder), node.launcher.remove(name)):
        with pytest.raises(LaunchError, match="is no container id"):
            await ask


async def test_requests_that_do_not_fit_the_state_are_refused(node: Node) -> None:
    bundle = node.bundle("c", "sleep", "100")
    await node.launcher.create("c", bundle)
    with pytest.raises(LaunchError, match="container c exists"):
        await node.launcher.create("c", bundle)
    await node.launcher.start("c")
    with pytest.raises(LaunchError, match="container c is not waiting to start"):
        await node.launcher.start("c")
    with pytest.raises(LaunchError, match="there is no container other"):
        await node.launcher.start("other")
    with pytest.raises(LaunchError, match="is no signal"):
        await node.launcher.signal("c", 1000)
    await node.launcher.kill("c")
    await node.end("c")
    with pytest.raises(LaunchError, match="container c has ended"):
        await node.launcher.signal("c", 15)


async def test_a_launcher_that_is_away_is_waited_for_and_then_named(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path / "none.sock", patience_s=0.2)
    async with asyncio.TaskGroup() as group:
        connection = group.create_task(launcher.run())
        with pytest.raises(LauncherLostError, match=r"no launcher answers at .*none\.sock"):
            await launcher.list()
        connection.cancel()


async def test_a_second_launcher_on_the_same_records_is_refused(node: Node) -> None:
    second = await asyncio.create_subprocess_exec(
        BIN / "estiba-launcher",
        *("--state", str(node.folder / "state"), "--socket", str(node.folder / "second.sock")),
        *("--log-pump-socket", "pump.sock", "--cgroup-parent", node.cgroup_parent),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await second.communicate()
    assert second.returncode == 1
    assert b"another launcher works in" in said
    assert await node.launcher.list() == []


def _pipes(node: Node) -> int:
    """Count outputs that the launcher or the pump still holds: each has one journal."""
    folders = (Path(f"/proc/{node.pid(name)}/fd") for name in ("launcher", "pump"))
    links = [str(each.readlink()) for folder in folders for each in folder.iterdir()]
    return sum("estiba-journal" in link for link in links)
