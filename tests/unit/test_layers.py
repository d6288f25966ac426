"""Layers laid out in folders: what overlayfs needs, and what no archive may do. Needs root."""

import asyncio
import contextlib
import gc
import os
import stat
import struct
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ImageError
from agent.images.layers import Layers
from tests.support.oci import (
    Entry,
    Layer,
    archive,
    entry,
    file,
    folder,
    hardlink,
    layer,
    opaque,
    symlink,
    whiteout,
)
from tests.support.waiting import eventually

OPAQUE = "trusted.overlay.opaque"
# struct vfs_cap_data, version 2, cap_net_bind_service permitted and effective.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


class Unpacked:
    """A place for layers, and a file beside it that no layer may touch."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outside = root / "outside"
        self.outside.mkdir(mode=0o750)
        (self.outside / "secret").write_text("untouched")
        self.layers = Layers(root / "layers", root / "work")
        self.layers.prepare()

    async def add(self, *entries: Entry) -> Path:
        return await self.add_layer(layer(*entries))

    async def add_layer(self, one: Layer, *, diff_id: str | None = None) -> Path:
        blob = self.root / "blob"
        blob.write_bytes(one.blob().content)
        return await self.layers.add(diff_id or one.diff_id, blob)

    async def refused(self, *entries: Entry) -> str:
        with pytest.raises(ImageError) as refused:
            await self.add(*entries)
        self.check_nothing_left()
        return str(refused.value)

    def check_nothing_left(self) -> None:
        assert list((self.root / "work").iterdir()) == []
        assert list((self.root / "layers").rglob("*/*")) == []
        self.check_outside()

    def check_outside(self) -> None:
        assert names_in(self.outside) == ["secret"]
        assert (self.outside / "secret").read_text() == "untouched"
        assert stat.S_IMODE(self.outside.stat().st_mode) == 0o750
        assert self.outside.stat().st_uid == 0


@pytest.fixture
def unpacked(tmp_path: Path) -> Unpacked:
    return Unpacked(tmp_path)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return OPAQUE in os.listxattr(path) and os.getxattr(path, OPAQUE) == b"y"


async def test_everything_an_archive_says_of_a_file_is_kept(unpacked: Unpacked) -> None:
    path = await unpacked.add(
        folder("d", mode=0o1750, uid=1000, gid=1001, mtime=1_000_000_000),
        file("d/f", b"content", mode=0o6755, uid=1002, gid=1003, mtime=1_100_000_000),
        hardlink("d/g", "d/f"),
        symlink("d/s", "../anywhere", uid=5, gid=6, mtime=1_200_000_000),
        entry("d/p", tarfile.FIFOTYPE, mode=0o622),
        entry("d/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        entry("d/disk", tarfile.BLKTYPE, mode=0o660, devmajor=8, devminor=1, gid=6),
    )

    at = {name: (path / "d" / name).lstat() for name in names_in(path / "d")}
    parent = (path / "d").stat()
    assert (stat.S_IMODE(parent.st_mode), parent.st_uid, parent.st_gid) == (0o1750, 1000, 1001)
    assert parent.st_mtime == 1_000_000_000
    assert (path / "d/f").read_bytes() == b"content"
    assert stat.S_IMODE(at["f"].st_mode) == 0o6755
    assert (at["f"].st_uid, at["f"].st_gid, at["f"].st_mtime) == (1002, 1003, 1_100_000_000)
    assert at["g"].st_ino == at["f"].st_ino
    assert (path / "d/s").readlink() == Path("../anywhere")
    assert (at["s"].st_uid, at["s"].st_mtime) == (5, 1_200_000_000)
    assert stat.S_ISFIFO(at["p"].st_mode)
    assert stat.S_IMODE(at["p"].st_mode) == 0o622
    assert (stat.S_ISCHR(at["null"].st_mode), at["null"].st_rdev) == (True, os.makedev(1, 3))
    assert (stat.S_ISBLK(at["disk"].st_mode), at["disk"].st_gid) == (True, 6)


async def test_a_files_capabilities_are_kept_and_other_attributes_are_not(
    unpacked: Unpacked,
) -> None:
    attributes = {
        "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.note": "x",
    }

    path = await unpacked.add(
        file("f", pax_headers=attributes), folder("d", pax_headers=attributes)
    )

    assert os.listxattr(path / "f") == ["security.capability"]
    assert os.getxattr(path / "f", "security.capability") == CAPABILITY
    assert OPAQUE not in os.listxattr(path / "d")


async def test_the_layers_own_folder_may_be_entered_by_everyone(unpacked: Unpacked) -> None:
    path = await unpacked.add(file("f"))

    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((unpacked.root / "layers").stat().st_mode) == 0o700


async def test_an_entry_for_the_root_sets_its_mode(unpacked: Unpacked) -> None:
    path = await unpacked.add(folder("./", mode=0o711, uid=7))

    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o711, 7)


async def test_a_whiteout_becomes_a_device_and_an_opaque_marker_an_attribute(
    unpacked: Unpacked,
) -> None:
    path = await unpacked.add(folder("d"), whiteout("d/gone"), whiteout("top"), opaque("e"))

    assert is_whiteout(path / "d/gone")
    assert is_whiteout(path / "top")
    assert is_opaque(path / "e")
    assert not is_opaque(path / "d")


@pytest.mark.parametrize("first", ["whiteout", "folder"])
async def test_a_folder_that_replaces_a_hidden_one_hides_what_was_in_it(
    unpacked: Unpacked, first: str
) -> None:
    entries = [whiteout("d"), folder("d"), file("d/new")]
    if first == "folder":
        entries = [*entries[1:], entries[0]]

    path = await unpacked.add(*entries)

    assert is_opaque(path / "d")
    assert (path / "d/new").is_file()


async def test_a_file_below_a_hidden_folder_brings_the_folder_back_empty(
    unpacked: Unpacked,
) -> None:
    path = await unpacked.add(whiteout("d"), file("d/new"))

    assert is_opaque(path / "d")


@pytest.mark.parametrize("first", ["whiteout", "file"])
async def test_a_file_of_the_same_layer_is_not_hidden(unpacked: Unpacked, first: str) -> None:
    entries = [whiteout("f"), file("f", b"here")]

    path = await unpacked.add(*(entries if first == "whiteout" else reversed(entries)))

    assert (path / "f").read_bytes() == b"here"


async def test_the_notes_of_another_file_system_are_left_out(unpacked: Unpacked) -> None:
    path = await unpacked.add(
        folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", b"x"), file(".wh..wh.aufs"), file("f")
    )

    assert names_in(path) == ["f"]


async def test_a_later_entry_replaces_an_earlier_one(unpacked: Unpacked) -> None:
    path = await unpacked.add(
        file("a", b"1"),
        file("a", b"2"),
        folder("b"),
        file("b/x"),
        file("b", b"now a file"),
        symlink("c", "/outside"),
        folder("c"),
        file("c/x", b"in c"),
        folder("d"),
        file("d/kept"),
        folder("d", mode=0o700),
    )

    assert (path / "a").read_bytes() == b"2"
    assert (path / "b").read_bytes() == b"now a file"
    assert (path / "c/x").read_bytes() == b"in c"
    assert not (path / "c").is_symlink()
    assert stat.S_IMODE((path / "d").stat().st_mode) == 0o700
    assert (path / "d/kept").is_file()


async def test_a_name_with_dots_that_lead_out_is_refused(unpacked: Unpacked) -> None:
    sentence = await unpacked.refused(file("a/../../outside/secret", b"broken"))

    assert "entry 'a/../../outside/secret' leads out of the layer" in sentence
    assert sentence.startswith("layer sha256:")


async def test_an_absolute_name_is_meant_from_the_layers_root(unpacked: Unpacked) -> None:
    target = f"{unpacked.outside}/secret"

    path = await unpacked.add(file(target, b"inside"))

    assert (path / target.lstrip("/")).read_bytes() == b"inside"
    unpacked.check_outside()


@pytest.mark.parametrize("climb", ["absolute", "relative", "two steps"])
async def test_a_link_in_a_path_leads_on_inside_the_layer(unpacked: Unpacked, climb: str) -> None:
    outside = str(unpacked.outside)
    links = {
        "absolute": [symlink("way", outside)],
        "relative": [symlink("way", "../" * 20 + outside.lstrip("/"))],
        "two steps": [symlink("up", "/.."), symlink("way", f"up{outside}")],
    }

    path = await unpacked.add(*links[climb], file("way/secret", b"inside", uid=9, mode=0o777))

    assert (path / outside.lstrip("/") / "secret").read_bytes() == b"inside"
    unpacked.check_outside()


async def test_a_link_to_a_folder_of_the_layer_is_followed(unpacked: Unpacked) -> None:
    path = await unpacked.add(
        folder("usr"), folder("usr/lib", mode=0o750), symlink("lib", "usr/lib"), file("lib/x", b"x")
    )

    assert (path / "usr/lib/x").read_bytes() == b"x"
    assert (path / "lib").is_symlink()


async def test_a_file_is_never_written_through_a_link(unpacked: Unpacked) -> None:
    path = await unpacked.add(
        symlink("f", f"{unpacked.outside}/secret"), file("f", b"inside", mode=0o777, uid=9)
    )

    assert (path / "f").read_bytes() == b"inside"
    unpacked.check_outside()


async def test_a_whiteout_or_marker_through_a_link_stays_inside(unpacked: Unpacked) -> None:
    outside = str(unpacked.outside)

    path = await unpacked.add(symlink("way", outside), whiteout("way/secret"), opaque("way"))

    assert is_whiteout(path / outside.lstrip("/") / "secret")
    unpacked.check_outside()
    assert OPAQUE not in os.listxattr(unpacked.outside)


hostile_names = st.lists(
    st.sampled_from(["a", "b", "way", "..", ".", "", ".wh.a", ".wh..wh..opq", "secret"]),
    min_size=1,
    max_size=4,
).map("/".join)
hostile_entries = st.builds(
    lambda name, kind, target: entry(name, kind, linkname=target, mode=0o777, uid=9),
    hostile_names,
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
    hostile_names | st.sampled_from(["OUTSIDE", "OUTSIDE/secret", "../" * 30 + "OUTSIDE", "/"]),
)


@given(st.lists(hostile_entries, max_size=12))
@settings(deadline=None, max_examples=300)
def test_whatever_an_archive_holds_nothing_outside_its_folder_changes(
    entries: list[Entry],
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Unpacked(Path(scratch))
        for one in entries:
            here = str(unpacked.outside).lstrip("/")
            one.info.linkname = one.info.linkname.replace("OUTSIDE", here)

        with contextlib.suppress(ImageError):
            asyncio.run(unpacked.add(*entries))

        unpacked.check_outside()
        assert (unpacked.outside / "secret").stat().st_nlink == 1
        assert list((unpacked.root / "work").iterdir()) == []


async def test_a_hard_link_to_what_is_outside_is_refused(unpacked: Unpacked) -> None:
    outside = str(unpacked.outside)
    for target in (f"{outside}/secret", "way/secret"):
        sentence = await unpacked.refused(symlink("way", outside), hardlink("f", target))
        assert f"entry 'f' links to '{target}', which is not in the layer" in sentence
    assert (unpacked.outside / "secret").stat().st_nlink == 1


async def test_a_hard_link_to_a_symbolic_link_is_one_to_the_link_itself(
    unpacked: Unpacked,
) -> None:
    path = await unpacked.add(symlink("s", f"{unpacked.outside}/secret"), hardlink("f", "s"))

    assert (path / "f").is_symlink()
    assert (unpacked.outside / "secret").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("entries", "because"),
    [
        ((file("f"), file("f/x")), "entry 'f/x' lies below 'f', which is not a folder"),
        ((symlink("l", "l"), file("l/x")), "lies behind too many symbolic links"),
        ((hardlink("f", "f"),), "links to itself"),
        ((hardlink("f", "../../x"),), "leads out of the layer"),
        ((hardlink("f", "/"),), "links to the layer's root"),
        ((file("."),), "replaces the layer's root"),
        ((whiteout(""),), "hides nothing that has a name"),
        ((whiteout(".."),), "hides nothing that has a name"),
        ((file("f", uid=1 << 40),), "entry 'f': "),
        ((file("x" * 300),), "File name too long"),
        ((file("f", pax_headers={"comment": "x" * (5 << 20)}),), "a header in it is too large"),
        # tarfile takes these for numbers without a look.
        ((file("f", pax_headers={"GNU.sparse.map": "a,b"}),), "cannot be unpacked"),
        ((file("f", pax_headers={"GNU.sparse.size": "x"}),), "cannot be unpacked"),
        ((file("f", pax_headers={"GNU.sparse.realsize": "x"}),), "cannot be unpacked"),
        # A terabyte of zeros in one kilobyte.
        (
            (file("f", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}),),
            "is a sparse file, which layers may not have",
        ),
    ],
)
async def test_what_no_layer_may_do_is_refused_in_one_sentence_and_leaves_nothing(
    unpacked: Unpacked, entries: tuple[Entry, ...], because: str
) -> None:
    assert because in await unpacked.refused(*entries)


async def test_a_file_larger_than_any_header_is_fine(unpacked: Unpacked) -> None:
    content = os.urandom(1 << 20) * 9

    path = await unpacked.add(file("large", content), file("after", b"x"))

    assert (path / "large").read_bytes() == content
    assert (path / "after").read_bytes() == b"x"


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_a_layer_is_read_whatever_compressed_it(unpacked: Unpacked, compression: str) -> None:
    path = await unpacked.add_layer(layer(file("f", b"x" * 100_000), compression=compression))

    assert (path / "f").stat().st_size == 100_000


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("damage", ["truncated", "changed"])
async def test_a_damaged_archive_is_one_sentence_and_leaves_nothing(
    unpacked: Unpacked, compression: str, damage: str
) -> None:
    whole = layer(*(file(f"f{i}", os.urandom(9000)) for i in range(20)), compression=compression)
    content = bytearray(whole.blob().content)
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0xFF
    blob = unpacked.root / "blob"
    blob.write_bytes(content)

    with pytest.raises(ImageError, match=rf"^layer {whole.diff_id}: .+"):
        await unpacked.layers.add(whole.diff_id, blob)

    unpacked.check_nothing_left()


async def test_what_is_no_archive_is_one_sentence(unpacked: Unpacked) -> None:
    with pytest.raises(ImageError, match="cannot be unpacked"):
        await unpacked.add_layer(Layer(b"<html>no</html>", "none"))
    unpacked.check_nothing_left()


async def test_another_layer_than_promised_is_refused(unpacked: Unpacked) -> None:
    one = layer(file("f"))
    promised = "sha256:" + "0" * 64

    with pytest.raises(ImageError) as refused:
        await unpacked.add_layer(one, diff_id=promised)

    assert str(refused.value) == (
        f"layer {promised}: unpacked, its content has digest {one.diff_id}"
    )
    unpacked.check_nothing_left()


async def test_an_empty_layer_is_an_empty_folder(unpacked: Unpacked) -> None:
    assert names_in(await unpacked.add()) == []


async def test_many_who_want_one_layer_share_one_folder(unpacked: Unpacked) -> None:
    one = layer(file("f"))
    blob = unpacked.root / "blob"
    blob.write_bytes(one.blob().content)

    paths = await asyncio.gather(*(unpacked.layers.add(one.diff_id, blob) for _ in range(10)))

    assert len(set(paths)) == 1


async def test_a_cancelled_unpacking_leaves_nothing_and_another_goes_on(
    unpacked: Unpacked, caplog: pytest.LogCaptureFixture
) -> None:
    one = layer(*(file(f"{i}", b"x" * 1000) for i in range(3000)))
    first = asyncio.create_task(unpacked.add_layer(one), name="first")
    second = asyncio.create_task(unpacked.add_layer(one), name="second")
    await asyncio.to_thread(
        eventually,
        lambda: list((unpacked.root / "work").glob("*/*")),
        within_s=10,
        what="the first files of the layer",
        every_s=0.001,
    )

    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    path = await second

    assert len(names_in(path)) == 3000
    assert list((unpacked.root / "work").iterdir()) == []
    del first
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_what_a_crash_left_is_removed_at_the_next_start(unpacked: Unpacked) -> None:
    left = unpacked.root / "work" / "half"
    left.mkdir()
    (left / "f").touch()

    unpacked.layers.prepare()

    assert list((unpacked.root / "work").iterdir()) == []


def test_the_test_archives_are_what_they_claim() -> None:
    assert archive(file("f", b"x"))[257:262] == b"ustar"
