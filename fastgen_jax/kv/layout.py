"""Arithmetic of blocks: tokens to blocks, blocks to bytes."""

from __future__ import annotations

NULL_BLOCK = 0
"""The block padding writes to; never handed out, so its content means nothing."""


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold ``num_tokens`` tokens."""
    return -(-num_tokens // block_size)


def usable_blocks(num_blocks: int) -> int:
    """Blocks of a pool that requests can hold: all but the null block."""
    return num_blocks - 1


def usable_tokens(num_blocks: int, block_size: int) -> int:
    """Tokens whose keys and values fit in a pool at once."""
    return usable_blocks(num_blocks) * block_size


def bytes_per_block(
    *, num_layers: int, num_kv_heads: int, head_dim: int, itemsize: int, block_size: int
) -> int:
    """Bytes one block takes over all layers, keys and values together.

    ``num_kv_heads`` is what one device holds; ``itemsize`` is bytes per element.
    """
    return 2 * num_layers * num_kv_heads * head_dim * itemsize * block_size
