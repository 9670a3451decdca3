"""A step's attention cut into items: a row's queries, or a tile of them, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.config import (
    AttentionConfig,
    AttentionNative,
    ReferenceConfig,
)
from pallas_kernels.ragged_paged_attention.native import NativeWork, native_work
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.units import KernelWork, plan_units


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class ItemWork:
    """What the reference attends, computed once a step and used by every layer.

    An item is (row, first token, number of queries, position of the first query); entries beyond
    the counts are zeros, which is an item without queries.

    Attributes:
        single_items: an item for each row with one query, int32 [R1, 4].
        num_singles: int32 [].
        tile_items: an item for each tile of each chunk, int32 [I1, 4].
        num_tiles: int32 [].
        block_tables: pages of each row, int32 [R, P].
    """

    single_items: Int[Array, "R1 4"]
    num_singles: Int[Array, ""]
    tile_items: Int[Array, "I1 4"]
    num_tiles: Int[Array, ""]
    block_tables: Int[Array, "R P"]


AttentionWork = ItemWork | KernelWork | NativeWork


def plan_work(
    batch: RaggedBatch,
    *,
    shape: AttentionShape,
    config: AttentionConfig,
    window: int | None = None,
) -> AttentionWork:
    """The work of a ragged batch, for layers with this window and for attention with this config.

    Computed once a step on the device. ``window`` is the layer's sliding window: a kernel leaves
    out the blocks of keys that no query sees.
    """
    if isinstance(config, ReferenceConfig):
        return _plan_items(batch, num_tokens=shape.num_tokens, config=config)
    if isinstance(config, AttentionNative):
        return native_work(batch)
    return plan_units(batch, shape=shape, config=config, window=window)


def _plan_items(batch: RaggedBatch, *, num_tokens: int, config: ReferenceConfig) -> ItemWork:
    num_rows = batch.query_start.shape[0]
    position = batch.kv_len - batch.query_len
    is_row = jnp.arange(num_rows, dtype=jnp.int32) < batch.num_rows
    is_single = jnp.arange(num_rows, dtype=jnp.int32) < batch.num_single_rows
    rows = jnp.stack(
        [jnp.arange(num_rows, dtype=jnp.int32), batch.query_start, batch.query_len, position], 1
    )
    # One more entry than there can be items: where lanes without work point to.
    singles = jnp.pad(jnp.where(is_single[:, None], rows, 0), ((0, 1), (0, 0)))
    size = min(config.chunk_queries, num_tokens)
    tiles = jnp.where(is_row & ~is_single, (batch.query_len + (size - 1)) // size, 0)
    past = jnp.tril(jnp.ones((num_rows, num_rows), jnp.int32)) @ tiles  # a cumulative sum
    num_items = num_tokens // size + num_rows if num_tokens > 1 else 0
    item = jnp.arange(num_items + 1, dtype=jnp.int32)
    row = jnp.minimum((past[None] <= item[:, None]).sum(-1, dtype=jnp.int32), num_rows - 1)
    first = (item - (past[row] - tiles[row])) * size
    of_row = rows[row]
    tile_items = jnp.stack(
        [
            row,
            of_row[:, 1] + first,
            jnp.minimum(of_row[:, 2] - first, size),
            of_row[:, 3] + first,
        ],
        1,
    )
    return ItemWork(
        single_items=singles,
        num_singles=batch.num_single_rows,
        tile_items=jnp.where((item < past[-1])[:, None], tile_items, 0),
        num_tiles=past[-1],
        block_tables=batch.block_tables,
    )
