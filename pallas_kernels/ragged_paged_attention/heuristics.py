"""Sizes for shapes that nobody has tuned on the device: what fits, by what limits the kernel."""

from __future__ import annotations

import math
from dataclasses import replace

import jax.numpy as jnp

from pallas_kernels.ragged_paged_attention.config import TILE_ROWS, HopperConfig, SplitRule
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.target import Target

_MOST_STAGES = 4
_FIXED_BYTES = 3072  # barriers, and the compiler's own room for sums over warps


def hopper_heuristic(shape: AttentionShape, target: Target) -> HopperConfig:
    """Two streams where registers and shared memory allow it, and as many stages as fit.

    Two streams, so that one's softmax runs beside the other's products and copies. With heads of
    256 the weighted sum alone takes 128 of a thread's 255 registers, which leaves room for one.
    """
    streams = 1 if shape.head_dim > 128 else 2
    config = HopperConfig(
        stages=_MOST_STAGES,
        streams=streams,
        num_blocks=target.num_sms,
        splits=split_rule(shape, target),
    )
    while shared_bytes(shape, config) > target.shared_memory:
        if config.stages > 2:
            config = replace(config, stages=config.stages - 1)
        elif config.streams > 1:
            config = replace(config, streams=1, stages=_MOST_STAGES)
        else:
            raise ValueError(
                f"head_dim={shape.head_dim} needs {shared_bytes(shape, config)} bytes of shared "
                f"memory, the device has {target.shared_memory}"
            )
    return config


def split_rule(shape: AttentionShape, target: Target) -> SplitRule:
    """Splits that let a few long rows fill the device, at a bounded number of partial slots.

    Decided from static sizes alone, so that it is the same for every batch.
    """
    longest = shape.pages_per_row * shape.page_size
    keys = SplitRule().keys
    most = max(1, min(SplitRule().max_splits, longest // keys))
    # Tiles fill the device by their number where there are enough kv heads for it.
    tiles = max(1, shape.num_tokens * shape.group // TILE_ROWS) * shape.num_kv_heads
    tile_splits = 1
    while tile_splits < 4 and 2 * tiles * tile_splits <= target.num_sms and most > tile_splits:
        tile_splits *= 2
    return SplitRule(keys=keys, max_splits=most, max_tile_splits=tile_splits)


def shared_bytes(shape: AttentionShape, config: HopperConfig) -> int:
    """Shared memory of a thread block of the Hopper kernel, rounded up."""
    item, kv_item = jnp.dtype(shape.dtype).itemsize, jnp.dtype(shape.kv_dtype).itemsize
    width = output_width(shape)
    is_split = config.splits.max_splits > 1 or config.splits.max_tile_splits > 1
    queries = TILE_ROWS * shape.head_dim * item
    ring = 2 * config.stages * config.block_keys * shape.head_dim * kv_item
    result = TILE_ROWS * width * (4 if is_split else item)
    cast = config.block_keys * shape.head_dim * item if kv_item != item else 0
    return config.streams * (queries + ring + result + cast) + _FIXED_BYTES


def output_width(shape: AttentionShape) -> int:
    """D of the Hopper kernel's output, padded where a token's rows would else be misaligned.

    Copies out of shared memory start at multiples of 128 bytes.
    """
    row = shape.group * shape.head_dim * jnp.dtype(shape.dtype).itemsize
    return shape.head_dim if row % 128 == 0 else math.ceil(shape.head_dim / 64) * 64
