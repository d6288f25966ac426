"""Which part of a network a node is given."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.allocator import PoolExhaustedError, claim_block

NETWORK = IPv4Network("10.10.0.0/16")

blocks = st.integers(0, 255).map(lambda index: IPv4Network(f"10.10.{index}.0/24"))
others = st.sampled_from(
    [IPv4Network("10.10.64.0/18"), IPv4Network("10.10.9.128/25"), IPv4Network("192.168.0.0/16")]
)


def test_the_first_block_is_kept_for_virtual_addresses() -> None:
    assert claim_block(NETWORK, [], prefix=24) == IPv4Network("10.10.1.0/24")


def test_the_lowest_free_block_is_claimed() -> None:
    taken = [IPv4Network("10.10.1.0/24"), IPv4Network("10.10.3.0/24")]

    assert claim_block(NETWORK, taken, prefix=24) == IPv4Network("10.10.2.0/24")


@given(st.sets(blocks | others))
def test_a_claimed_block_lies_in_the_network_and_overlaps_nothing(taken: set[IPv4Network]) -> None:
    block = claim_block(NETWORK, taken, prefix=24)

    assert block.subnet_of(NETWORK)
    assert block.prefixlen == 24
    assert not any(block.overlaps(other) for other in taken)
    assert not block.overlaps(IPv4Network("10.10.0.0/24"))


def test_every_block_but_the_first_is_handed_out_before_the_pool_is_exhausted() -> None:
    network = IPv4Network("10.1.0.0/22")
    taken: list[IPv4Network] = []
    for _ in range(3):
        taken.append(claim_block(network, taken, prefix=24))

    assert taken == list(network.subnets(new_prefix=24))[1:]
    with pytest.raises(PoolExhaustedError, match=r"all 3 blocks of 10\.1\.0\.0/22"):
        claim_block(network, taken, prefix=24)


def test_a_network_of_another_size_that_is_taken_takes_all_that_it_overlaps() -> None:
    block = claim_block(NETWORK, [IPv4Network("10.10.0.0/17")], prefix=24)

    assert block == IPv4Network("10.10.128.0/24")


@pytest.mark.parametrize("prefix", [8, 16, 33])
def test_a_prefix_that_does_not_divide_the_network_is_refused(prefix: int) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        claim_block(NETWORK, [], prefix=prefix)
