"""The root of a container: layers, what it writes, and images that try to lead out of it."""

import json
import os
from pathlib import Path

import pytest

from agent.errors import LaunchError
from agent.runtime.spec import Bind
from tests.support.containers import Node


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Return a second layer, on top of the busybox one, for a test to fill."""
    folder = tmp_path / "more"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder of the node that no container may reach."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("secret of the node\n")
    return folder


async def test_layers_lie_on_each_other_the_first_lowest(
    node: Node, more: Path, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (more / "name").write_text("middle\n")
    (more / "only").write_text("middle\n")
    (top / "name").write_text("top\n")
    said = await node.output("c", "cat", "/name", "/only", layers=[node.layer, more, top])
    assert said == "top\nmiddle\n"


async def test_what_a_container_writes_stays_with_it(node: Node) -> None:
    assert await node.output("one", "sh", "-c", "echo mine > /made; cat /made") == "mine\n"
    assert await node.output("two", "ls", "/made") == ""
    assert not (node.layer / "made").exists()


async def test_a_container_of_the_same_name_begins_afresh(node: Node) -> None:
    bundle = node.bundle("c", "sh", "-c", "ls /made; touch /made; exec sleep 100")
    for _ in range(2):
        await node.launcher.create("c", bundle)
        await node.launcher.start("c")
        await node.until(lambda: (bundle / "upper/made").exists(), "it has written")
        await node.launcher.remove("c")
        assert [path.name for path in bundle.iterdir()] == ["config.json"]
    assert node.lines("c") == []
    assert len(node.lines("c", "stderr")) == 2


async def test_an_upper_folder_left_by_a_crash_is_thrown_away(node: Node) -> None:
    bundle = node.bundle("c", "ls", "/left")
    # What a `volatile` overlay leaves behind, and because of which it refuses a second mount.
    (bundle / "work/work/incompat/volatile/dirty").mkdir(parents=True)
    (bundle / "upper/left").mkdir(parents=True)
    await node.launcher.create("c", bundle)
    await node.launcher.start("c")
    assert (await node.end("c")).exit_code == 1


async def test_a_hundred_layers_can_be_mounted(node: Node, tmp_path: Path) -> None:
    layers = [node.layer]
    for number in range(100):
        layers.append(tmp_path / ("x" * 100) / f"layer:{number},with=signs")
        layers[-1].mkdir(parents=True)
        (layers[-1] / f"file{number}").write_text("")
    said = await node.output("c", "sh", "-c", "ls / | grep -c file", layers=layers)
    assert said == "100\n"


async def test_more_layers_than_can_be_mounted_are_refused_by_number(
    node: Node, tmp_path: Path
) -> None:
    layers = [node.layer, *(tmp_path / str(number) for number in range(400))]
    for layer in layers[1:]:
        layer.mkdir()
    with pytest.raises(LaunchError, match="the image has 401 layers, more than can be mounted"):
        await node.run("c", "true", layers=layers)


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["/etc", "outside", "/no/such", "../../../../../.."])
async def test_an_image_whose_system_folders_are_links_is_refused(
    node: Node, more: Path, outside: Path, name: str, target: str
) -> None:
    (more / name).symlink_to(outside if target == "outside" else target)
    with pytest.raises(LaunchError) as refused:
        await node.run("c", "true", layers=[node.layer, more])
    assert str(refused.value) == f"the image's /{name} is not a folder"
    assert [path.name for path in outside.iterdir()] == ["secret"]


async def test_an_image_whose_proc_is_a_file_is_refused(node: Node, more: Path) -> None:
    (more / "proc").write_text("")
    with pytest.raises(LaunchError) as refused:
        await node.run("c", "true", layers=[node.layer, more])
    assert str(refused.value) == "the image's /proc is not a folder"


@pytest.mark.parametrize("depth", ["", "../../../../../../../.."])
async def test_a_file_is_bound_inside_the_root_though_its_name_is_a_link_out(
    node: Node, more: Path, outside: Path, depth: str
) -> None:
    (more / "etc").mkdir()
    (more / "etc/resolv.conf").symlink_to(f"{depth}{outside}/secret")
    (more / "etc/hosts").symlink_to(f"{depth}{outside}/new")
    source = more.parent / "source"
    source.write_text("from the agent\n")
    binds = [Bind(str(source), "/etc/resolv.conf"), Bind(str(source), "/etc/hosts")]
    said = await node.output(
        "c", "cat", "/etc/resolv.conf", "/etc/hosts", layers=[node.layer, more], binds=binds
    )
    assert said == "from the agent\n" * 2
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret of the node\n"


async def test_a_bind_makes_the_folders_on_its_way(node: Node, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (source / "file").write_text("words\n")
    binds = [
        Bind(str(source), "/var/lib/app"),
        Bind(str(source / "file"), "/srv/a/file", read_only=True),
    ]
    script = "cat /var/lib/app/file /srv/a/file; touch /var/lib/app/new; echo x >> /srv/a/file"
    assert await node.output("c", "sh", "-c", script, binds=binds) == "words\nwords\n"
    assert (source / "new").exists()
    assert (source / "file").read_text() == "words\n"
    assert "Read-only file system" in node.lines("c", "stderr")[0]


async def test_a_missing_working_directory_is_made(node: Node) -> None:
    assert await node.output("c", "pwd", cwd="/srv/app/data") == "/srv/app/data\n"


async def test_a_working_directory_that_is_a_link_out_stays_inside(
    node: Node, more: Path, outside: Path
) -> None:
    (more / "app").symlink_to(outside)
    with pytest.raises(LaunchError) as refused:
        await node.run("c", "ls", cwd="/app", layers=[node.layer, more])
    assert refused.value.stage == "workdir"
    (more / "app").unlink()
    (more / "app").symlink_to("/etc")
    said = await node.output("d", "pwd", cwd="/app", layers=[node.layer, more])
    assert said == "/etc\n"


@pytest.mark.parametrize("number", range(3, 12))
async def test_no_descriptor_of_the_launcher_can_be_a_working_directory(
    node: Node, number: int
) -> None:
    # As in CVE-2024-21626, where one led to a folder of the node.
    with pytest.raises(LaunchError) as refused:
        await node.run("c", "pwd", cwd=f"/proc/self/fd/{number}")
    assert refused.value.stage == "workdir"


async def test_a_user_may_start_in_a_folder_that_is_closed_to_him(node: Node, more: Path) -> None:
    (more / "closed").mkdir(mode=0o700)
    said = await node.output(
        "c", "sh", "-c", "pwd", cwd="/closed", user="ana", layers=[node.layer, more]
    )
    assert said == "/closed\n"


async def test_accounts_that_are_no_regular_file_count_as_absent(node: Node, more: Path) -> None:
    (more / "etc").mkdir()
    os.mkfifo(more / "etc/passwd")
    (more / "etc/group").symlink_to("/dev/zero")
    assert await node.output("c", "sh", "-c", "echo $HOME", layers=[node.layer, more]) == "/\n"
    with pytest.raises(LaunchError, match="user ana is not in the image's /etc/passwd"):
        await node.run("d", "true", user="ana", layers=[node.layer, more])


async def test_no_python_of_the_image_is_run_by_the_launcher(node: Node, more: Path) -> None:
    # What the launcher's child imported after the change of root would come from here.
    library = Path(json.__file__).parents[1]
    planted = more / library.relative_to("/")
    planted.mkdir(parents=True)
    for name in ("traceback.py", "encodings.py", "struct.py", "signal.py"):
        (planted / name).write_text("open('/planted', 'w')")
    with pytest.raises(LaunchError, match="command not found: nothing"):
        await node.run("c", "nothing", layers=[node.layer, more])
    said = await node.output("d", "ls", "/", layers=[node.layer, more])
    assert "planted" not in said


async def test_what_a_container_has_nested_deeply_is_removed(node: Node) -> None:
    script = "i=0; while [ $i -lt 1500 ]; do mkdir d && cd d; i=$((i+1)); done; echo $i"
    bundle = node.bundle("c", "sh", "-c", f"mkdir /tmp/deep; cd /tmp/deep; {script}")
    await node.launcher.create("c", bundle)
    await node.launcher.start("c")
    await node.end("c")
    await node.launcher.remove("c")
    assert node.lines("c") == ["1500\n"]
    assert [path.name for path in bundle.iterdir()] == ["config.json"]


async def test_removing_follows_no_link_that_a_container_has_made(
    node: Node, outside: Path
) -> None:
    await node.run("c", "sh", "-c", f"ln -s {outside} /link; ln -s {outside}/secret /etc/secret")
    await node.end("c")
    await node.launcher.remove("c")
    assert (outside / "secret").read_text() == "secret of the node\n"
