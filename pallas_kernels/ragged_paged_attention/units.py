"""A step's attention cut into units of about equal kind for the kernels' thread blocks."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.config import KernelConfig, SplitRule, tile_rows
from pallas_kernels.ragged_paged_attention.shape import AttentionShape

DIRECT = -1  # slot of a unit that isn't split: it writes the output itself


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelWork:
    """Units of work and the merges that follow them, computed once a step for every layer.

    A unit is (row, first token, queries, position of the first query, first block of keys, number
    of blocks of keys, slot, is first). It is attended once for each kv head. Its queries' partial
    results go to the partial slots from ``slot`` on, or straight to the output where that is
    ``DIRECT``. ``is first`` is 1 for the split with the row's first keys. Long units come first,
    so that the short ones fill the end of the launch.

    A merge is (token, number of splits, slot of its first split, distance to the next).

    Entries beyond the counts are zeros.

    Attributes:
        units: int32 [U, 8].
        num_units: int32 [1].
        merges: int32 [M, 4]; M is 0 where nothing is ever split.
        num_merges: int32 [1].
        block_tables: pages of each row, int32 [R, P].
    """

    units: Int[Array, "U 8"]
    num_units: Int[Array, "1"]
    merges: Int[Array, "M 4"]
    num_merges: Int[Array, "1"]
    block_tables: Int[Array, "R P"]


def tile_queries(shape: AttentionShape, config: KernelConfig) -> int:
    """Queries of a full tile: as many as have room for their group's heads."""
    return tile_rows(config) // shape.group


def num_slots(shape: AttentionShape, splits: SplitRule) -> int:
    """Partial slots that the worst step needs; each holds a query of all heads."""
    singles = shape.num_rows * splits.max_splits if splits.max_splits > 1 else 0
    tiles = shape.num_tokens * splits.max_tile_splits if splits.max_tile_splits > 1 else 0
    return singles + tiles


def max_units(shape: AttentionShape, config: KernelConfig) -> int:
    """Units that the worst step has."""
    splits = config.splits
    tiles = shape.num_tokens // tile_queries(shape, config) + shape.num_rows
    if shape.num_tokens == 1:
        tiles = 0
    return shape.num_rows * splits.max_splits + tiles * splits.max_tile_splits


def plan_units(
    batch: RaggedBatch, *, shape: AttentionShape, config: KernelConfig, window: int | None
) -> KernelWork:
    """The units of a ragged batch; ``window`` leaves out the keys that no query sees."""
    size = tile_queries(shape, config)
    num_rows, num_tokens = shape.num_rows, shape.num_tokens
    rule, keys = config.splits, config.block_keys
    row_ids = jnp.arange(num_rows, dtype=jnp.int32)
    is_single = row_ids < batch.num_single_rows
    is_chunk = ~is_single & (row_ids < batch.num_rows)
    position = batch.kv_len - batch.query_len
    row_blocks = _ceil_div(batch.kv_len, keys)
    if window is not None:
        # The widest that one of the row's units can be: a tile's window, unaligned at both ends.
        widest = jnp.where(is_single, window, window + size - 1)
        row_blocks = jnp.minimum(row_blocks, _ceil_div(widest, keys) + 1)
    split_blocks, row_splits = _splits(row_blocks, is_single, shape, config)
    tiles = jnp.where(is_single, 1, jnp.where(is_chunk, _ceil_div(batch.query_len, size), 0))
    counts = tiles * row_splits
    # Rows from last to first: the chunks, which have the long units, come before the singles.
    past = jnp.cumsum(counts[::-1], dtype=jnp.int32)[::-1]
    total = past[0]
    unit = jnp.arange(max_units(shape, config), dtype=jnp.int32)
    row = (past[None] > unit[:, None]).sum(-1, dtype=jnp.int32) - 1
    row = jnp.maximum(row, 0)
    index = unit - (past[row] - counts[row])
    tile = tiles[row] - 1 - index // row_splits[row]
    split = index % row_splits[row]
    first = tile * size
    queries = jnp.minimum(batch.query_len[row] - first, size)
    first_position = position[row] + first
    end_block = _ceil_div(first_position + queries, keys)
    begin_block = jnp.zeros_like(end_block)
    if window is not None:
        begin_block = jnp.maximum(first_position - (window - 1), 0) // keys
    begin = begin_block + split * split_blocks[row]
    count = jnp.clip(end_block - begin, 0, split_blocks[row])
    token = batch.query_start[row] + first
    is_split = row_splits[row] > 1
    slot = jnp.where(
        is_single[row],
        split * num_rows + row,
        _tile_region(shape, rule) + split * num_tokens + token,
    )
    units = jnp.stack(
        [
            row,
            token,
            queries,
            first_position,
            begin,
            count,
            jnp.where(is_split, slot, DIRECT),
            (split == 0).astype(jnp.int32),
        ],
        1,
    )
    merges, num_merges = _merges(batch, row_splits, is_single, is_chunk, shape, rule)
    return KernelWork(
        units=jnp.where((unit < total)[:, None], units, 0),
        num_units=total[None],
        merges=merges,
        num_merges=num_merges[None],
        block_tables=batch.block_tables,
    )


def _splits(
    row_blocks: Int[Array, "R"],
    is_single: Bool[Array, "R"],
    shape: AttentionShape,
    config: KernelConfig,
) -> tuple[Int[Array, "R"], Int[Array, "R"]]:
    """Blocks of a split, and the splits of each row's units."""
    rule = config.splits
    most = jnp.where(is_single, rule.max_splits, rule.max_tile_splits)
    blocks = jnp.full_like(row_blocks, max(1, rule.keys // config.block_keys))
    longest = shape.pages_per_row * shape.page_size
    reach = max(1, rule.keys)
    while reach < longest:  # doublings that the longest row without any split needs
        blocks = jnp.where(_ceil_div(row_blocks, blocks) > most, 2 * blocks, blocks)
        reach *= 2
    return blocks, jnp.maximum(_ceil_div(row_blocks, blocks), 1)


def _merges(
    batch: RaggedBatch,
    row_splits: Int[Array, "R"],
    is_single: Bool[Array, "R"],
    is_chunk: Bool[Array, "R"],
    shape: AttentionShape,
    rule: SplitRule,
) -> tuple[Int[Array, "M 4"], Int[Array, ""]]:
    num_rows, num_tokens = shape.num_rows, shape.num_tokens
    parts = [jnp.zeros((0, 4), jnp.int32)]
    if rule.max_splits > 1:
        rows = jnp.arange(num_rows, dtype=jnp.int32)
        stride = jnp.full_like(rows, num_rows)
        count = jnp.where(is_single, row_splits, 0)
        parts.append(jnp.stack([rows, count, rows, stride], 1))
    if rule.max_tile_splits > 1:
        tokens = jnp.arange(num_tokens, dtype=jnp.int32)
        row_end = batch.query_start + batch.query_len
        is_past = is_chunk[None] & (row_end[None] <= tokens[:, None])
        row = batch.num_single_rows + is_past.sum(-1, dtype=jnp.int32)
        is_of_chunk = (tokens >= batch.num_single_rows) & (row < batch.num_rows)
        count = jnp.where(is_of_chunk, row_splits[jnp.minimum(row, num_rows - 1)], 0)
        slot = _tile_region(shape, rule) + tokens
        parts.append(jnp.stack([tokens, count, slot, jnp.full_like(tokens, num_tokens)], 1))
    every = jnp.concatenate(parts)
    is_merge = every[:, 1] > 1
    place = jnp.where(is_merge, jnp.cumsum(is_merge, dtype=jnp.int32) - 1, every.shape[0])
    merges = jnp.zeros_like(every).at[place].set(every, mode="drop", wrap_negative_indices=False)
    return merges, is_merge.sum(dtype=jnp.int32)


def _tile_region(shape: AttentionShape, rule: SplitRule) -> int:
    """First slot of the tiles."""
    return shape.num_rows * rule.max_splits if rule.max_splits > 1 else 0


def _ceil_div(value: Int[Array, "*N"], by: Int[Array, "*N"] | int) -> Int[Array, "*N"]:
    return (value + (by - 1)) // by
