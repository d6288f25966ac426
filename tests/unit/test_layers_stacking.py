"""Folders that a layer needed and did not describe, in a stack of layers. Needs root."""

from pathlib import Path

import pytest

from agent.images.layers import Layers
from agent.images.stacking import Attributes
from tests.support.oci import Entry, file, folder, layer, opaque, whiteout


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    made = Layers(tmp_path / "layers", tmp_path / "work")
    made.prepare()
    return made


async def on_top(layers: Layers, scratch: Path, *stack: list[Entry]) -> list[Attributes]:
    """Unpack layers, bottom first, and describe the folders put on top of them."""
    diff_ids = []
    for entries in stack:
        one = layer(*entries)
        (scratch / "blob").write_bytes(one.blob().content)
        await layers.add(one.diff_id, scratch / "blob")
        diff_ids.append(one.diff_id)
    folders = layers.stack(diff_ids)
    assert folders[: len(stack)] == tuple(layers.path(one) for one in diff_ids)
    return [
        Attributes(
            str(path.relative_to(top)),
            path.stat().st_mode & 0o7777,
            path.stat().st_uid,
            path.stat().st_gid,
        )
        for top in folders[len(stack) :]
        for path in sorted(top.rglob("*"))
    ]


BASE = [folder("d", mode=0o700, uid=5, gid=6), folder("d/e", mode=0o711)]
D = Attributes("d", 0o700, 5, 6)
E = Attributes("d/e", 0o711, 0, 0)


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        pytest.param([BASE], [], id="nothing is made up"),
        pytest.param([[file("x/y")]], [], id="nothing lower says otherwise"),
        pytest.param([BASE, [file("d/f")]], [D], id="the lower one counts"),
        pytest.param([BASE, [file("d/e/f")]], [D, E], id="and its parent"),
        pytest.param([BASE, [file("d/e/f")], [file("d/e/g")]], [D, E], id="twice made up"),
        pytest.param(
            [BASE, [file("d/f")], [folder("d", mode=0o755)]], [], id="described again above"
        ),
        pytest.param([BASE, [whiteout("d"), file("d/f")]], [], id="the lower one is hidden"),
        pytest.param([BASE, [whiteout("d")], [file("d/f")]], [], id="hidden by a layer between"),
        pytest.param([BASE, [file("d/f")], [whiteout("d")]], [], id="hidden above"),
        pytest.param([BASE, [file("d/f")], [file("d")]], [], id="replaced above"),
        pytest.param(
            [BASE, [opaque("d")], [file("d/e/f")]], [], id="a folder emptied is a new one"
        ),
        pytest.param([[folder("d")], [file("d/f")]], [], id="as it would be made up anyway"),
    ],
)
async def test_a_folder_shows_what_the_last_archive_that_describes_it_says(
    layers: Layers, tmp_path: Path, stack: list[list[Entry]], expected: list[Attributes]
) -> None:
    assert await on_top(layers, tmp_path, *stack) == expected


async def test_two_stacks_that_need_the_same_share_it(layers: Layers, tmp_path: Path) -> None:
    for name in ("f", "g"):
        assert await on_top(layers, tmp_path, BASE, [file(f"d/{name}")]) == [D]

    assert len(list((tmp_path / "layers/folders").iterdir())) == 1
    assert list((tmp_path / "work").iterdir()) == []
