"""What a malicious image or container tries against its node, and finds closed."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent.errors import LaunchError
from tests.support.containers import Node

HUGE = "x" * 150_000


@pytest.fixture
def more(tmp_path: Path) -> Path:
    folder = tmp_path / "more"
    (folder / "etc").mkdir(parents=True)
    return folder


# ---------------------------------------------------------------- words too many


def _with_zero_byte(spec: dict[str, Any]) -> None:
    spec["process"]["env"].append(f"{HUGE}\0")


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        ([HUGE], {}),
        (["true"], {"user": HUGE}),
        (["true"], {"cwd": f"/{HUGE}"}),
        (["true"], {"change": _with_zero_byte}),
    ],
    ids=["command", "user", "workdir", "env"],
)
async def test_a_fault_that_quotes_the_image_at_length_is_cut_and_the_launcher_goes_on(
    node: Node, args: list[str], settings: dict[str, Any]
) -> None:
    with pytest.raises(LaunchError) as refused:
        await node.run("c", *args, **settings)
    assert 0 < len(str(refused.value)) < 2000
    assert await node.output("d", "echo", "alive") == "alive\n"


@pytest.mark.parametrize(
    ("passwd", "group"),
    [
        (f"root:x:0:0:root:/{HUGE}:/bin/sh\n", ""),
        (
            "root:x:0:0::/root:/bin/sh\n",
            "".join(f"g{each}:x:{1_000_000_000 + each}:root\n" for each in range(12_000)),
        ),
        ("root:x:0:0::/root:/bin/sh\n", f"g:x:{'9' * 5000}:root\n"),
        (f"root:x:{'9' * 5000}:0::/root:/bin/sh\n", ""),
    ],
    ids=["home", "groups", "group number", "user number"],
)
async def test_accounts_beyond_measure_end_the_container_and_not_the_launcher(
    node: Node, more: Path, passwd: str, group: str
) -> None:
    (more / "etc/passwd").write_text(passwd)
    (more / "etc/group").write_text(group)
    with suppress(LaunchError):
        await node.run("c", "sleep", "100", layers=[node.layer, more])
    assert await node.output("d", "echo", "alive") == "alive\n"


async def test_a_user_number_that_means_unchanged_to_the_kernel_is_no_user(
    node: Node, more: Path
) -> None:
    (more / "etc/passwd").write_text("evil:x:4294967295:4294967295::/:/bin/sh\n")
    with pytest.raises(LaunchError, match="user evil is not in the image's /etc/passwd"):
        await node.run("c", "sleep", "100", user="evil", layers=[node.layer, more])


# ---------------------------------------------------------------- files


async def test_a_container_cannot_make_itself_impossible_to_remove(node: Node) -> None:
    script = (
        "cd /tmp; for name in 0 1 2 3 4 5 6 7; do"
        " mkdir -p removed.$name/in tree$name/removed.$name/in; echo > removed.file$name; done"
    )
    bundle = node.bundle("c", "sh", "-c", script)
    await node.launcher.create("c", bundle)
    await node.launcher.start("c")
    await node.end("c")
    for name in ("a", "b", "c"):
        for number in range(4):
            (bundle / "upper" / f"removed.{number}" / name).mkdir(parents=True, exist_ok=True)
    await node.launcher.remove("c")
    assert [path.name for path in bundle.iterdir()] == ["config.json"]


# ---------------------------------------------------------------- keys


async def test_it_holds_none_of_the_launchers_keys(node: Node) -> None:
    before = _session_keyrings()
    pid = await node.run("c", "sleep", "100")
    assert pid
    assert _session_keyrings() - before


def _session_keyrings() -> set[str]:
    """Return the ids of all session keyrings. Source: proc(5), /proc/keys."""
    lines = [line.split() for line in Path("/proc/keys").read_text().splitlines()]
    return {words[0] for words in lines if words[7:9] == ["keyring", "_ses:"]}


# ---------------------------------------------------------------- descriptors

STREAMS = "for each in 0 1 2; do stat -L -c '%F %d' /proc/self/fd/$each; done; stat -c %d /dev/null"


async def test_no_stream_of_it_is_a_device_of_the_node(node: Node) -> None:
    # It could change who may open the node's null device, which everything there needs.
    said = await node.output("c", "sh", "-c", STREAMS)
    streams, own = said.splitlines()[:3], said.splitlines()[3]
    assert streams[0] == f"character special file {own}"
    assert [each.startswith("fifo ") for each in streams[1:]] == [True, True]


async def test_no_stream_of_a_command_in_it_is_a_device_of_the_node(node: Node) -> None:
    pid = await node.run("c", "sh", "-c", "rm /dev/null; mkdir /dev/null; sleep 100")
    own = Path(f"/proc/{pid}/root/dev/null")
    await node.until(own.is_dir, "it has replaced its null device")
    ended = await node.launcher.exec("c", ["sh", "-c", f"cat; {STREAMS}"], timeout_s=10)
    streams = ended.output.decode().splitlines()[:3]
    assert [each.startswith("fifo ") for each in streams] == [True] * 3


async def test_without_a_log_its_output_goes_to_its_own_null_device(node: Node) -> None:
    def without_log(spec: dict[str, Any]) -> None:
        del spec["annotations"]["org.estiba.log"]

    pid = await node.run("c", "sleep", "100", change=without_log)
    own = Path(f"/proc/{pid}/root/dev/null").stat().st_dev
    assert {Path(f"/proc/{pid}/fd/{each}").stat().st_dev for each in range(3)} == {own}
