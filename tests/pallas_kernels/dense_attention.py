"""Ragged batches over scattered pages, and attention on them one query at a time in float64."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import AttentionOptions, RaggedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """Sizes of a case; a row is (queries in this step, keys including them)."""

    rows: tuple[tuple[int, int], ...]
    num_tokens: int
    max_rows: int
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 8
    pages_per_row: int = 16
    dtype: str = "float32"
    num_pages: int | None = None  # None: as many as the rows need, and three


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Arrays of a case."""

    q: jnp.ndarray
    k_pages: jnp.ndarray
    v_pages: jnp.ndarray
    batch: RaggedBatch


def make_inputs(case: AttentionCase, seed: int = 0) -> AttentionInputs:
    """Random values on pages in random order; unused slots hold NaN, as leftovers may."""
    rng = np.random.default_rng(seed)
    count = sum(-(-keys // case.page_size) for _, keys in case.rows)
    num_pages = count + 3 if case.num_pages is None else case.num_pages
    order = rng.permutation(num_pages - 1) + 1
    tables = np.zeros((case.max_rows, case.pages_per_row), np.int32)
    shape = (num_pages, case.num_kv_heads, case.page_size, case.head_dim)
    k_pages = np.full(shape, np.nan, np.float32)
    v_pages = np.full(shape, np.nan, np.float32)
    k_pages[0] = v_pages[0] = 7.0  # the null page holds padding's writes
    taken = 0
    for r, (_, keys) in enumerate(case.rows):
        pages = -(-keys // case.page_size)
        tables[r, :pages] = order[taken : taken + pages]
        taken += pages
        for position in range(keys):
            page, slot = tables[r, position // case.page_size], position % case.page_size
            k_pages[page, :, slot] = rng.normal(size=(case.num_kv_heads, case.head_dim))
            v_pages[page, :, slot] = rng.normal(size=(case.num_kv_heads, case.head_dim))
    lengths = [queries for queries, _ in case.rows]
    starts = np.cumsum([0, *lengths[:-1]]) if lengths else []
    q = rng.normal(size=(case.num_tokens, case.num_heads, case.head_dim))
    return AttentionInputs(
        jnp.asarray(q, case.dtype),
        jnp.asarray(k_pages, case.dtype),
        jnp.asarray(v_pages, case.dtype),
        RaggedBatch(
            query_start=_padded(starts, case.max_rows),
            query_len=_padded(lengths, case.max_rows),
            kv_len=_padded([keys for _, keys in case.rows], case.max_rows),
            block_tables=jnp.asarray(tables),
            num_single_rows=jnp.int32(sum(queries == 1 for queries in lengths)),
            num_rows=jnp.int32(len(case.rows)),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionExtras:
    """Per-head arrays of a call; None where a call has none."""

    sinks: np.ndarray | None = None
    k_scales: np.ndarray | None = None
    v_scales: np.ndarray | None = None


def dense_attention(
    case: AttentionCase,
    inputs: AttentionInputs,
    options: AttentionOptions,
    extras: AttentionExtras = AttentionExtras(),
) -> np.ndarray:
    """What every query sees, in float64; zeros for tokens of no row."""
    q, k_pages, v_pages = (
        np.asarray(array, np.float64) for array in (inputs.q, inputs.k_pages, inputs.v_pages)
    )
    out = np.zeros(q.shape)
    group = case.num_heads // case.num_kv_heads
    token = 0
    for r, (queries, keys) in enumerate(case.rows):
        table = np.asarray(inputs.batch.block_tables)[r]
        for i in range(queries):
            end = keys - queries + i + 1
            start = 0 if options.window is None else max(0, end - options.window)
            positions = np.arange(start, end)
            pages, slots = table[positions // case.page_size], positions % case.page_size
            for head in range(case.num_heads):
                k, v = (p[pages, head // group, slots] for p in (k_pages, v_pages))
                scores = k @ q[token, head] * options.scale
                if extras.k_scales is not None:
                    scores = scores * extras.k_scales[head // group]
                if options.softcap is not None:
                    scores = options.softcap * np.tanh(scores / options.softcap)
                top = scores.max()
                weights = np.exp(scores - top)
                total = weights.sum()
                if extras.sinks is not None:
                    total += np.exp(extras.sinks[head] - top)
                out[token, head] = weights @ v / total
                if extras.v_scales is not None:
                    out[token, head] *= extras.v_scales[head // group]
            token += 1
    return out


def _padded(values: object, size: int) -> jnp.ndarray:
    padded = np.zeros(size, np.int32)
    listed = np.asarray(values, np.int32)
    padded[: len(listed)] = listed
    return jnp.asarray(padded)
