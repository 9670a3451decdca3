"""The attention in plain XLA: obviously right first, and the CPU's path.

A loop keeps a few lanes busy: each lane walks over the keys of one item with an online softmax
and takes the next item when it is through. The loop's length is data, so the work follows the real
context of the step and not the longest one that would fit. Every item meets its keys in the same
order and in the same shapes whatever runs beside it, so a row's result doesn't depend on its
neighbours.

XLA compiles every small operation on a CPU to a kernel of its own, each at about the same cost
whatever its size, which is why this is written with as few of them as possible.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.ragged_paged_attention.config import ReferenceConfig
from pallas_kernels.ragged_paged_attention.options import AttentionOptions
from pallas_kernels.ragged_paged_attention.work import ItemWork

MASKED = -1e30  # finite, so that a wholly masked tile gives exp(0) times 0 and never NaN


class _Pages(NamedTuple):
    k_pages: Float[Array, "N K S D"]
    v_pages: Float[Array, "N K S D"]
    tables: Int[Array, "R C2 C"]  # C pages make the keys of one turn


class _Extras(NamedTuple):
    """What some models add; None leaves a part out of the program."""

    window: Int[Array, ""] | int | None
    sinks: Float[Array, "H"] | None
    k_scales: Float[Array, "K"] | None
    v_scales: Float[Array, "K"] | None


class _Lanes(NamedTuple):
    item: Int[Array, "B"]
    turn: Int[Array, "B"]  # turns made over the item's keys
    next_item: Int[Array, ""]
    top: Float[Array, "B K G"]  # largest score so far
    total: Float[Array, "B K G"]  # sum of the weights
    seen: Float[Array, "B K G D"]  # weighted sum of the values
    out: Float[Array, "T H D"]


def ragged_paged_attention_reference(
    q: Float[Array, "T H D"],
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    work: ItemWork,
    *,
    first_page: Int[Array, ""],
    options: AttentionOptions,
    config: ReferenceConfig,
    sinks: Float[Array, "H"] | None = None,
    k_scales: Float[Array, "K"] | None = None,
    v_scales: Float[Array, "K"] | None = None,
    window: Int[Array, ""] | int | None = None,
) -> Float[Array, "T H D"]:
    """What each query sees of its row's keys; zeros for tokens that no item holds.

    Scores, softmax and sums are float32; the products take the dtype of q.
    """
    extras = _Extras(window, sinks, k_scales, v_scales)

    def attend(items: Array, count: Array, out: Array, lanes: int, queries: int, keys: int):
        pages = _Pages(k_pages, v_pages, _tables(work, first_page, keys // k_pages.shape[2]))
        return _attend_items(q, out, pages, items, count, lanes, queries, options, extras)

    out = jnp.zeros(q.shape, q.dtype)
    num_rows = work.single_items.shape[0] - 1
    lanes = min(config.decode_lanes, num_rows)
    out = attend(work.single_items, work.num_singles, out, lanes, 1, config.decode_keys)
    if q.shape[0] == 1:
        return out
    queries = min(config.chunk_queries, q.shape[0])
    return attend(work.tile_items, work.num_tiles, out, 1, queries, config.chunk_keys)


def _tables(
    work: ItemWork, first_page: Int[Array, ""], pages_per_turn: int
) -> Int[Array, "R C2 C"]:
    num_rows, width = work.block_tables.shape
    pages_per_turn = min(max(1, pages_per_turn), width)
    padding = -width % pages_per_turn
    tables = jnp.pad(work.block_tables + first_page, ((0, 0), (0, padding)))
    return tables.reshape(num_rows, -1, pages_per_turn)


def _attend_items(
    q: Float[Array, "T H D"],
    out: Float[Array, "T H D"],
    pages: _Pages,
    items: Int[Array, "I 4"],
    num_items: Int[Array, ""],
    num_lanes: int,
    num_queries: int,
    options: AttentionOptions,
    extras: _Extras,
) -> Float[Array, "T H D"]:
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, page_size = pages.k_pages.shape[1:3]
    groups = num_heads // num_kv_heads * num_queries
    num_keys = pages.tables.shape[2] * page_size
    lane = jnp.arange(num_lanes, dtype=jnp.int32)
    query = jnp.arange(num_queries, dtype=jnp.int32)
    # A sink is a key that came before all others, with a value of 0.
    first_top, first_total = jnp.float32(MASKED), 0.0
    if extras.sinks is not None:
        of_head = extras.sinks.astype(jnp.float32).reshape(num_kv_heads, -1)
        first_top, first_total = jnp.tile(of_head, (1, num_queries))[None], 1.0

    def turn(lanes: _Lanes) -> _Lanes:
        row, first_token, queries, position = jnp.split(_take(items, lanes.item), 4, axis=1)
        is_query = query[None] < queries
        token = jnp.where(is_query, first_token + query[None], num_tokens)
        mine = _take(q, jnp.minimum(token, num_tokens - 1))  # [B, Q, H, D]
        mine = mine.reshape(num_lanes, num_queries, num_kv_heads, -1, head_dim)
        mine = mine.swapaxes(1, 2).reshape(num_lanes, num_kv_heads, groups, head_dim)
        ids = _take2(pages.tables, row[:, 0], lanes.turn)
        key = lanes.turn[:, None] * num_keys + jnp.arange(num_keys, dtype=jnp.int32)[None]
        end = position + queries
        # What a page holds beyond the row's end is somebody's leftover, possibly NaN.
        is_key = (key < end)[:, None, :, None]
        keys = _keys(pages.k_pages, ids).astype(q.dtype)
        values = jnp.where(is_key, _keys(pages.v_pages, ids).astype(q.dtype), 0)
        last_seen = jnp.where(is_query, position + query[None], -1)
        last_seen = jnp.repeat(last_seen, groups // num_queries, axis=1)
        is_seen = (key[:, None, :] <= last_seen[:, :, None])[:, None]
        if extras.window is not None:
            is_near = key[:, None, :] > last_seen[:, :, None] - extras.window
            is_seen = is_seen & is_near[:, None]
        scores = jnp.einsum("bkgd,bkwd->bkgw", mine, keys, preferred_element_type=jnp.float32)
        scores = scores * options.scale
        if extras.k_scales is not None:
            scores = scores * extras.k_scales[None, :, None, None]
        if options.softcap is not None:
            scores = options.softcap * jnp.tanh(scores / options.softcap)
        scores = jnp.where(is_seen, scores, MASKED)
        # Selected away and not multiplied by 0: the lane's last item may have ended in NaN.
        is_first = (lanes.turn == 0)[:, None, None]
        old_top = jnp.where(is_first, first_top, lanes.top)
        old_total = jnp.where(is_first, first_total, lanes.total)
        old_seen = jnp.where(is_first[..., None], 0.0, lanes.seen)
        top = jnp.maximum(old_top, scores.max(-1))
        weights = jnp.where(is_seen, jnp.exp(scores - top[..., None]), 0.0)
        fading = jnp.exp(old_top - top)
        total = old_total * fading + weights.sum(-1)
        seen = old_seen * fading[..., None] + jnp.einsum(
            "bkgw,bkwd->bkgd",
            weights.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
        result = seen / jnp.maximum(total, 1e-30)[..., None]
        if extras.v_scales is not None:
            result = result * extras.v_scales[None, :, None, None]
        result = result.astype(out.dtype)
        result = result.reshape(num_lanes, num_kv_heads, num_queries, -1, head_dim).swapaxes(1, 2)
        is_through = (lanes.turn + 1) * num_keys >= end[:, 0]
        place = (is_through[None] & (lane[None] <= lane[:, None])).sum(-1, dtype=jnp.int32)
        following = jnp.minimum(lanes.next_item + place - 1, items.shape[0] - 1)
        return _Lanes(
            item=jnp.where(is_through, following, lanes.item),
            turn=jnp.where(is_through, 0, lanes.turn + 1),
            next_item=lanes.next_item + place[-1],
            top=top,
            total=total,
            seen=seen,
            # Written on every turn, kept from the last; queries that don't exist are dropped.
            out=lanes.out.at[token.reshape(-1)].set(
                result.reshape(-1, num_heads, head_dim), mode="drop", wrap_negative_indices=False
            ),
        )

    shape = (num_lanes, num_kv_heads, groups)
    lanes = _Lanes(
        item=lane,
        turn=jnp.zeros(num_lanes, jnp.int32),
        next_item=jnp.int32(num_lanes),
        top=jnp.zeros(shape, jnp.float32),
        total=jnp.zeros(shape, jnp.float32),
        seen=jnp.zeros((*shape, head_dim), jnp.float32),
        out=out,
    )
    # The lowest item in work is in some lane until the very end.
    return lax.while_loop(lambda lanes: (lanes.item < num_items).any(), turn, lanes).out


def _keys(pages: Float[Array, "N K S D"], ids: Int[Array, "B C"]) -> Float[Array, "B K W D"]:
    taken = _take(pages, ids).swapaxes(1, 2)  # [B, K, C, S, D]
    return taken.reshape(*taken.shape[:2], -1, taken.shape[-1])


def _take(array: Array, index: Int[Array, "*B"]) -> Array:
    return array.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _take2(array: Array, first: Int[Array, "B"], second: Int[Array, "B"]) -> Array:
    return array.at[first, second].get(mode="promise_in_bounds", wrap_negative_indices=False)
