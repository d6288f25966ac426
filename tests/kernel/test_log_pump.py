"""What containers print reaches their log, each line once, whoever is killed meanwhile."""

import asyncio
import re
from pathlib import Path

import pytest

from tests.support.containers import Node, alive, journals

ENTRY = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) [FP] .*")
COUNT = "i=0; while [ $i -lt {} ]; do echo line $i; i=$((i+1)); done"
FLOOD = "i=0; until [ -e /go ]; do seq $i $((i+999)); i=$((i+1000)); done; echo end"


async def test_lines_have_the_form_of_cri(node: Node) -> None:
    await node.output("c", "sh", "-c", "echo out; echo err >&2; echo; printf 'no end'")
    entries = node.entries("c")
    assert all(ENTRY.fullmatch(entry) for entry in entries)
    assert [entry.split(" ", 1)[1] for entry in entries if " stdout " in entry] == [
        "stdout F out",
        "stdout F ",
        "stdout F no end",
    ]
    assert node.lines("c", "stderr") == ["err\n"]
    assert (node.log("c").stat().st_mode & 0o777) == 0o600


async def test_a_container_that_prints_nothing_has_no_log(node: Node) -> None:
    assert await node.output("c", "true") == ""
    assert not node.log("c").exists()


async def test_a_long_line_is_written_in_parts_of_16_kibibytes(node: Node) -> None:
    said = await node.output(
        "c", "sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end"
    )
    assert said == "x" * 40000 + "\nend\n"
    parts = [entry.split(" ", 3)[2:] for entry in node.entries("c")]
    assert [(tag, len(text)) for tag, text in parts] == [
        *(("P", 16384), ("P", 16384), ("F", 7232)),
        ("F", 3),
    ]


async def test_a_line_in_many_small_pieces_is_put_together(node: Node) -> None:
    script = "i=0; while [ $i -lt 500 ]; do printf x; i=$((i+1)); done; echo; echo end"
    assert await node.output("c", "sh", "-c", script) == "x" * 500 + "\nend\n"


async def test_bytes_that_are_no_text_are_kept(node: Node) -> None:
    await node.run("c", "printf", "\\377\\000\\376\\n")
    await node.end("c")
    await node.launcher.remove("c")
    assert node.log("c").read_bytes().endswith(b" stdout F \xff\x00\xfe\n")


async def test_files_are_rotated_by_size_and_only_so_many_are_kept(node: Node) -> None:
    await node.output("c", "sh", "-c", COUNT.format(3000), max_size_bytes=40_000, max_files=3)
    files = sorted(node.log("c").parent.iterdir())
    assert [path.name for path in files] == ["c.log", "c.log.1", "c.log.2"]
    assert all(path.stat().st_size <= 40_000 for path in files)
    assert all(path.stat().st_size > 39_900 for path in files[1:])
    numbers = [int(line.split()[1]) for line in node.lines("c")]
    # The oldest are gone, what is left has no gap.
    assert numbers == list(range(numbers[0], 3000))
    assert numbers[0] > 0


async def test_with_one_file_the_log_begins_anew(node: Node) -> None:
    await node.output("c", "sh", "-c", COUNT.format(9000), max_size_bytes=10_000, max_files=1)
    assert [path.name for path in node.log("c").parent.iterdir()] == ["c.log"]
    assert node.lines("c")[-1] == "line 8999\n"


async def test_a_killed_pump_loses_no_line_and_doubles_none(node: Node) -> None:
    pid = await node.run("c", "sh", "-c", FLOOD, max_size_bytes=1 << 28)
    for _ in range(5):
        size = _size(node.log("c"))
        await node.until(
            lambda size=size: _size(node.log("c")) > size,  # type: ignore[misc]
            "the pump has begun to write",
        )
        node.kill("pump")
        node.start_pump()
    Path(f"/proc/{pid}/root/go").touch()
    assert (await node.end("c")).exit_code == 0
    await node.until(lambda: "end" in _tail(node.log("c")), "all is written")
    *numbers, end = node.lines("c")
    assert end == "end\n"
    assert numbers == [f"{number}\n" for number in range(len(numbers))]
    assert len(numbers) > 5000


async def test_output_waits_while_there_is_no_pump_and_no_container_gets_sigpipe(
    node: Node,
) -> None:
    node.kill("pump")
    pid = await node.run("c", "sh", "-c", f"{COUNT.format(1000)}; exec sleep 1000")
    await node.until(lambda: Path(f"/proc/{pid}/cmdline").read_text()[:5] == "sleep", "printed")
    assert not node.log("c").exists()
    node.start_pump()
    await node.until(lambda: len(node.lines("c")) == 1000, "it is written")
    assert alive(pid)


async def test_output_of_a_removed_container_is_still_written(node: Node) -> None:
    node.kill("pump")
    await node.run("c", "sh", "-c", COUNT.format(1000))
    await node.end("c")
    await node.launcher.remove("c")
    node.start_pump()
    await node.until(lambda: len(node.lines("c")) == 1000, "it is written")


async def test_output_goes_on_when_the_launcher_is_killed(node: Node) -> None:
    lines = 20_000
    await node.run("c", "sh", "-c", COUNT.format(lines), max_size_bytes=1 << 24)
    for _ in range(3):
        node.kill("launcher")
        node.start_launcher()
        await node.launcher.list()
    assert (await node.end("c")).signal is None
    await node.launcher.remove("c")
    assert node.lines("c") == [f"line {number}\n" for number in range(lines)]


async def test_after_the_launcher_and_then_the_pump_were_killed_nothing_is_lost(
    node: Node,
) -> None:
    lines = 20_000
    script = f"{COUNT.format(lines)}; until [ -e /go ]; do sleep 0.02; done; echo end"
    pid = await node.run("c", "sh", "-c", script, max_size_bytes=1 << 24)
    node.kill("launcher")
    node.start_launcher()
    # The new launcher has the pipes from the pump only, and the new pump from the launcher only.
    await node.until(lambda: journals(node.pid("launcher")) == 1, "the launcher has the pipes")
    node.kill("pump")
    Path(f"/proc/{pid}/root/go").touch()
    node.start_pump()
    assert (await node.end("c")).signal is None
    await node.until(lambda: "end" in _tail(node.log("c")), "all is written")
    assert node.lines("c") == [*(f"line {number}\n" for number in range(lines)), "end\n"]


@pytest.mark.parametrize(("stopped", "away"), [("launcher", "pump"), ("pump", "launcher")])
async def test_one_that_is_told_to_stop_hands_over_to_the_other_that_has_just_started(
    node: Node, stopped: str, away: str
) -> None:
    script = f"{COUNT.format(1000)}; until [ -e /go ]; do sleep 0.02; done; echo end"
    pid = await node.run("c", "sh", "-c", script)
    await node.until(lambda: len(node.lines("c")) == 1000, "it has printed")
    node.kill(away)
    # Told before the other is there: then it surely has not got anything.
    node.tell_to_stop(stopped)
    getattr(node, f"start_{away}")()
    assert await asyncio.to_thread(node.wait_for_end, stopped) == 0
    Path(f"/proc/{pid}/root/go").touch()
    getattr(node, f"start_{stopped}")()
    assert (await node.end("c")).signal is None
    await node.until(lambda: len(node.lines("c")) == 1001, "all is written")


async def test_a_flood_of_one_container_delays_neither_another_nor_a_start(node: Node) -> None:
    await node.run("flood", "yes", max_size_bytes=1 << 20, max_files=2)
    await node.until(lambda: node.log("flood").exists(), "the flood has begun")
    loop = asyncio.get_running_loop()
    began = loop.time()
    await node.run("c", "sh", "-c", "echo here; exec sleep 1000")
    await node.until(lambda: node.lines("c") == ["here\n"], "its line is written")
    # Tenths of a second on a busy machine; a pump that drained the flood first never would.
    assert loop.time() - began < 5


async def test_a_log_folder_that_is_gone_does_not_stop_the_container(node: Node) -> None:
    bundle = node.bundle("c", "sh", "-c", f"{COUNT.format(100_000)}; exit 5")
    node.log("c").parent.rmdir()
    await node.launcher.create("c", bundle)
    await node.launcher.start("c")
    assert (await node.end("c")).exit_code == 5
    await node.launcher.remove("c")
    assert not node.log("c").parent.exists()


async def test_a_log_path_that_is_a_link_is_not_followed(node: Node, tmp_path: Path) -> None:
    bundle = node.bundle("c", "echo", "words")
    node.log("c").symlink_to(tmp_path / "elsewhere")
    await node.launcher.create("c", bundle)
    await node.launcher.start("c")
    await node.end("c")
    await node.launcher.remove("c")
    assert not (tmp_path / "elsewhere").exists()


async def test_the_pump_lets_go_of_what_is_written_and_ended(node: Node) -> None:
    for number in range(5):
        await node.output(f"c{number}", "echo", "words")
    for name in ("launcher", "pump"):
        await node.until(lambda name=name: journals(node.pid(name)) == 0, f"the {name} lets go")  # type: ignore[misc]


@pytest.mark.parametrize("first", ["pump", "launcher"])
async def test_the_order_in_which_both_start_does_not_matter(node: Node, first: str) -> None:
    second = "launcher" if first == "pump" else "pump"
    assert node.stop("pump") == 0
    assert node.stop("launcher") == 0
    start = {"pump": node.start_pump, "launcher": node.start_launcher}
    start[first]()
    await node.until((node.folder / f"{first}.sock").exists, f"the {first} listens")
    start[second]()
    await node.launcher.list()
    await node.run("c", "echo", "words")
    await node.until(lambda: node.lines("c") == ["words\n"], "it is written")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        return file.read().decode()
