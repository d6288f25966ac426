"""Which part of a network's addresses a node hands out. Pure.

The first block of a network is never a node's: virtual addresses will come from there.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network

from controlplane.errors import EstibaError


class PoolExhaustedError(EstibaError):
    """Every block of the network belongs to a node; the message says how many there are."""


def claim_block(network: IPv4Network, taken: Iterable[IPv4Network], *, prefix: int) -> IPv4Network:
    """Return the lowest free block of ``network``, of ``prefix`` bits.

    Blocks taken may be of another size, claimed under an earlier setting: what
    overlaps one of them is not free.

    Raises:
        PoolExhaustedError: there is none.
        ValueError: ``prefix`` does not divide the network in at least two blocks.
    """
    if not network.prefixlen < prefix <= network.max_prefixlen:
        raise ValueError(f"/{prefix} does not divide {network}")
    size_bits = network.max_prefixlen - prefix
    first = int(network.network_address) >> size_bits
    blocks = 1 << (prefix - network.prefixlen)
    used = {0}
    for other in taken:
        if other.overlaps(network):
            low = (int(other.network_address) >> size_bits) - first
            high = (int(other.broadcast_address) >> size_bits) - first
            used.update(range(max(low, 0), min(high, blocks - 1) + 1))
    index = next((index for index in range(blocks) if index not in used), None)
    if index is None:
        count = blocks - 1
        raise PoolExhaustedError(f"all {count} blocks of {network} (/{prefix} each) are taken")
    return IPv4Network(((first + index) << size_bits, prefix))
