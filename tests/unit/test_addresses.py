"""Handing out the addresses of a block."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.net.addresses import AddressBook, Block, DamagedBookError, NoAddressError, load, save
from agent.net.topology import Segment


def segment(block: str = "10.10.3.0/29", network_id: str = "net-1") -> Segment:
    return Segment(network_id, IPv4Network("10.10.0.0/16"), IPv4Network(block), 4097, 1450)


def test_the_first_address_goes_to_the_gateway_and_the_last_to_nobody() -> None:
    block = Block(segment())
    given_out = [str(block.allocate(f"c{index}")) for index in range(5)]
    assert given_out == [f"10.10.3.{number}" for number in range(2, 7)]
    with pytest.raises(NoAddressError, match=r"all 5 addresses of block 10\.10\.3\.0/29"):
        block.allocate("one too many")


def test_a_container_keeps_its_address() -> None:
    block = Block(segment())
    assert block.allocate("c1") == block.allocate("c1")


def test_a_freed_address_rests_until_all_others_have_been_used() -> None:
    block = Block(segment())
    first = block.allocate("c0")
    block.free("c0")
    following = [block.allocate(f"c{index}") for index in range(1, 5)]
    assert first not in following
    assert block.allocate("c5") == first


def test_of_two_freed_addresses_the_one_freed_longer_ago_comes_first() -> None:
    block = Block(segment())
    held = {name: block.allocate(name) for name in ("a", "b", "c", "d", "e")}
    block.free("d")
    block.free("a")
    assert block.allocate("f") == held["d"]


names = st.sampled_from([f"c{index}" for index in range(9)])


@given(st.lists(st.tuples(st.booleans(), names), max_size=80))
def test_no_address_is_ever_held_twice_or_lost(steps: list[tuple[bool, str]]) -> None:
    block = Block(segment())
    for allocate, name in steps:
        if not allocate:
            block.free(name)
        elif name in block.held or len(block.held) < 5:
            block.allocate(name)
        held = list(block.held.values())
        assert len({*held, *block.freed}) == len(held) + len(block.freed) <= 5


def test_the_book_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    book = AddressBook()
    block = book.block(segment())
    kept = block.allocate("kept")
    rested = block.allocate("freed")
    book.free("freed")
    save(book, tmp_path / "network.json")

    again = load(tmp_path / "network.json")

    assert again.segments == [segment()]
    assert again.block(segment()).held == {"kept": kept}
    assert again.block(segment()).freed == [rested]
    assert [path.name for path in tmp_path.iterdir()] == ["network.json"]


def test_an_absent_file_is_an_empty_book(tmp_path: Path) -> None:
    assert load(tmp_path / "network.json").segments == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"networks": [{}]}', '{"networks": 7}'])
def test_a_damaged_file_is_told_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "network.json"
    path.write_text(text)
    with pytest.raises(DamagedBookError, match=r"network\.json is damaged"):
        load(path)


def test_only_the_living_keep_their_addresses() -> None:
    book = AddressBook()
    for name in ("a", "b", "c"):
        book.block(segment()).allocate(name)
    assert sorted(book.keep_only({"b", "unknown"})) == ["a", "c"]
    assert list(book.block(segment()).held) == ["b"]


def test_a_network_whose_block_changed_starts_anew() -> None:
    book = AddressBook()
    book.block(segment()).allocate("a")
    changed = book.block(segment("10.10.4.0/29"))
    assert changed.held == {}
    assert str(changed.allocate("a")) == "10.10.4.2"
    assert book.segments == [segment("10.10.4.0/29")]
