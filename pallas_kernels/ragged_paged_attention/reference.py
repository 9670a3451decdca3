"""The attention in plain XLA: obviously right first, and the CPU's path.

Both loops have trip counts that are data, so the work follows the real context of the step and
not the longest one that would fit. Every row meets its keys in the same order and in the same
tile shapes whatever runs beside it, so its result does not depend on its neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.config import ReferenceConfig

MASKED = -1e30  # finite, so that a fully masked tile gives exp(0) times 0 and never NaN


class _Cache(NamedTuple):
    k_pages: Float[Array, "N K S D"]
    v_pages: Float[Array, "N K S D"]
    block_tables: Int[Array, "R P"]
    pages_per_tile: int

    @property
    def tile_keys(self) -> int:
        return self.pages_per_tile * self.k_pages.shape[2]

    def tiles(
        self, rows: Int[Array, "B"], tile_indices: Int[Array, "B"]
    ) -> tuple[Float[Array, "B K W D"], Float[Array, "B K W D"]]:
        """Keys and values of the given tile of each given row."""
        first = tile_indices * self.pages_per_tile
        columns = first[:, None] + jnp.arange(self.pages_per_tile, dtype=jnp.int32)
        ids = self.block_tables.at[rows[:, None], columns].get(mode="fill", fill_value=0)
        return self._gather(self.k_pages, ids), self._gather(self.v_pages, ids)

    def _gather(
        self, pages: Float[Array, "N K S D"], ids: Int[Array, "B C"]
    ) -> Float[Array, "B K W D"]:
        tile = pages.at[ids].get(mode="promise_in_bounds")  # [B, C, K, S, D]
        num_tiles, _, heads, _, size = tile.shape
        return tile.transpose(0, 2, 1, 3, 4).reshape(num_tiles, heads, self.tile_keys, size)


def ragged_paged_attention_reference(
    q: Float[Array, "T H D"],
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    batch: RaggedBatch,
    *,
    scale: float,
    config: ReferenceConfig,
) -> Float[Array, "T H D"]:
    """What each query sees of its row's keys; rows of padding give zeros.

    Scores, softmax and sums are float32; the products take the cache's dtype.
    """
    page_size = k_pages.shape[2]
    num_tokens = q.shape[0]
    max_rows = min(batch.query_start.shape[0], num_tokens)

    def cache(keys: int) -> _Cache:
        pages_per_tile = min(max(1, keys // page_size), batch.block_tables.shape[1])
        return _Cache(k_pages, v_pages, batch.block_tables, pages_per_tile)

    out = _single_rows(q[:max_rows], cache(config.decode_keys), batch, scale, config.decode_units)
    tile_queries = min(config.chunk_queries, num_tokens)
    padded = jnp.zeros((num_tokens + tile_queries, *q.shape[1:]), q.dtype).at[:max_rows].set(out)
    if num_tokens == 1:
        return padded[:1]
    return _chunk_rows(q, padded, cache(config.chunk_keys), batch, scale, tile_queries)


def _single_rows(
    q: Float[Array, "R H D"], cache: _Cache, batch: RaggedBatch, scale: float, num_units: int
) -> Float[Array, "R H D"]:
    max_rows, num_heads, head_dim = q.shape
    num_kv_heads = cache.k_pages.shape[1]
    grouped = q.reshape(max_rows, num_kv_heads, -1, head_dim)
    num_units = min(num_units, max_rows * cache.block_tables.shape[1])
    kv_len = batch.kv_len[:max_rows]
    is_single = jnp.arange(max_rows, dtype=jnp.int32) < batch.num_single_rows
    units = jnp.where(is_single, _ceil_div(kv_len, cache.tile_keys), 0)
    last_unit = jnp.cumsum(units, dtype=jnp.int32)
    total = last_unit[-1]

    def turn(turn_index: Int[Array, ""], state: Float[Array, "R K G D2"]):
        unit = turn_index * num_units + jnp.arange(num_units, dtype=jnp.int32)
        row = jnp.minimum((last_unit[None] <= unit[:, None]).sum(-1, dtype=jnp.int32), max_rows - 1)
        tile = unit - (last_unit[row] - units[row])
        keys, values = cache.tiles(row, tile)
        position = tile[:, None] * cache.tile_keys + jnp.arange(cache.tile_keys, dtype=jnp.int32)
        is_key = position < kv_len[row][:, None]
        part = _attend(grouped[row], keys, values, is_key[:, None, None], scale)

        def merge(i: Int[Array, ""], state: Float[Array, "R K G D2"]):
            merged = _merge(state[row[i]], part[i])
            return state.at[row[i]].set(jnp.where(unit[i] < total, merged, state[row[i]]))

        return lax.fori_loop(0, num_units, merge, state)

    state = lax.fori_loop(0, _ceil_div(total, num_units), turn, _empty_state(grouped.shape))
    return _normalize(state).reshape(max_rows, num_heads, head_dim).astype(q.dtype)


def _chunk_rows(
    q: Float[Array, "T H D"],
    out: Float[Array, "T2 H D"],
    cache: _Cache,
    batch: RaggedBatch,
    scale: float,
    tile_queries: int,
) -> Float[Array, "T H D"]:
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = cache.k_pages.shape[1]
    groups = num_heads // num_kv_heads
    q = jnp.concatenate([q, jnp.zeros((tile_queries, num_heads, head_dim), q.dtype)])
    query = jnp.repeat(jnp.arange(tile_queries, dtype=jnp.int32), groups)

    def tile_of_row(carry: tuple) -> tuple:
        row, first, out = carry
        start = batch.query_start[row] + first
        tile = lax.dynamic_slice_in_dim(q, start, tile_queries)
        tile = tile.reshape(tile_queries, num_kv_heads, groups, head_dim).transpose(1, 0, 2, 3)
        tile = tile.reshape(1, num_kv_heads, tile_queries * groups, head_dim)
        position = batch.kv_len[row] - batch.query_len[row] + first + query
        num_keys = jnp.minimum(position[-1] + 1, batch.kv_len[row])

        def turn(index: Int[Array, ""], state: Float[Array, "1 K G D2"]):
            keys, values = cache.tiles(row[None], index[None])
            key = index * cache.tile_keys + jnp.arange(cache.tile_keys, dtype=jnp.int32)
            is_seen = key[None] <= jnp.minimum(position, num_keys - 1)[:, None]
            return _merge(state, _attend(tile, keys, values, is_seen[None, None], scale))

        turns = _ceil_div(num_keys, cache.tile_keys)
        state = lax.fori_loop(0, turns, turn, _empty_state(tile.shape))
        seen = _normalize(state).astype(out.dtype)
        seen = seen.reshape(num_kv_heads, tile_queries, groups, head_dim).transpose(1, 0, 2, 3)
        # The tile's tail may reach into the next row's tokens; that row's own tile comes later.
        out = lax.dynamic_update_slice_in_dim(
            out, seen.reshape(tile_queries, num_heads, head_dim), start, 0
        )
        first = first + tile_queries
        is_done = first >= batch.query_len[row]
        return row + is_done.astype(jnp.int32), jnp.where(is_done, 0, first), out

    carry = (batch.num_single_rows, jnp.int32(0), out)
    *_, out = lax.while_loop(lambda carry: carry[0] < batch.num_rows, tile_of_row, carry)
    num_valid = (batch.query_start + batch.query_len).max()
    is_valid = jnp.arange(num_tokens, dtype=jnp.int32) < num_valid
    return jnp.where(is_valid[:, None, None], out[:num_tokens], 0)


def _attend(
    q: Float[Array, "B K G D"],
    keys: Float[Array, "B K W D"],
    values: Float[Array, "B K W D"],
    is_seen: Array,
    scale: float,
) -> Float[Array, "B K G D2"]:
    """Unnormalized attention to one tile of keys, with its maximum and sum appended."""
    scores = jnp.einsum("bkgd,bkwd->bkgw", q, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(is_seen, scores * scale, MASKED)
    top = scores.max(-1, keepdims=True)
    weights = jnp.where(is_seen, jnp.exp(scores - top), 0.0)
    total = weights.sum(-1, keepdims=True)
    seen = jnp.einsum(
        "bkgw,bkwd->bkgd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return jnp.concatenate([seen, top, total], axis=-1)


def _merge(old: Float[Array, "*B D2"], new: Float[Array, "*B D2"]) -> Float[Array, "*B D2"]:
    """Online softmax: both parts brought to the larger of their maxima and added."""
    old_top, new_top = old[..., -2:-1], new[..., -2:-1]
    top = jnp.maximum(old_top, new_top)
    merged = old * jnp.exp(old_top - top) + new * jnp.exp(new_top - top)
    return jnp.concatenate([merged[..., :-2], top, merged[..., -1:]], axis=-1)


def _empty_state(shape: tuple[int, ...]) -> Float[Array, "*B D2"]:
    state = jnp.zeros((*shape[:-1], shape[-1] + 2), jnp.float32)
    return state.at[..., -2].set(MASKED)


def _normalize(state: Float[Array, "*B D2"]) -> Float[Array, "*B D"]:
    total = state[..., -1:]
    return state[..., :-2] / jnp.where(total == 0.0, 1.0, total)


def _ceil_div(a: Int[Array, "*B"], b: int) -> Int[Array, "*B"]:
    return (a + (b - 1)) // b
