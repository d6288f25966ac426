"""Hand out addresses: pure, the caller says what is taken."""

from controlplane.allocator.blocks import PoolExhaustedError, claim_block

__all__ = ["PoolExhaustedError", "claim_block"]
