"""One class of tests for every implementation of the attention."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import RaggedBatch, ReferenceConfig, plan_work, ragged_paged_attention
from tests.pallas_kernels.dense_attention import (
    AttentionCase,
    AttentionInputs,
    dense_attention,
    make_inputs,
)

pytestmark = pytest.mark.usefixtures("jax_strict")

# float32 sums of up to 128 products of unit normals, in another order than the float64 check.
FLOAT32_TOLERANCE = 2e-5
# bfloat16 has 8 bits: keys, values and weights are each rounded by up to 2^-9.
BFLOAT16_TOLERANCE = 3e-2

SMALL_TILES = ReferenceConfig(decode_keys=16, decode_lanes=1, chunk_queries=4, chunk_keys=16)

CASES = {
    "one decode": AttentionCase(rows=((1, 9),), num_tokens=1, max_rows=1),
    "first token": AttentionCase(rows=((1, 1),), num_tokens=4, max_rows=2),
    "decodes": AttentionCase(
        rows=((1, 1), (1, 8), (1, 9), (1, 100), (1, 128)), num_tokens=8, max_rows=8
    ),
    "whole prompt": AttentionCase(rows=((17, 17),), num_tokens=24, max_rows=3),
    "chunk in the middle": AttentionCase(rows=((16, 96),), num_tokens=16, max_rows=4),
    "mix": AttentionCase(
        rows=((1, 40), (1, 7), (5, 5), (3, 64), (13, 33)), num_tokens=32, max_rows=8
    ),
    "single-token prompt rows": AttentionCase(rows=((1, 1), (1, 1)), num_tokens=2, max_rows=2),
    "no rows": AttentionCase(rows=(), num_tokens=8, max_rows=4),
    "full step": AttentionCase(rows=((1, 65), (31, 63)), num_tokens=32, max_rows=2),
    "odd group": AttentionCase(
        rows=((1, 30), (9, 20)), num_tokens=12, max_rows=4, num_heads=7, num_kv_heads=1
    ),
    "no group": AttentionCase(
        rows=((1, 30), (9, 20)), num_tokens=12, max_rows=4, num_heads=3, num_kv_heads=3
    ),
    "large pages": AttentionCase(
        rows=((1, 130), (6, 70)), num_tokens=8, max_rows=4, page_size=64, pages_per_row=3
    ),
    "table no multiple of the tile": AttentionCase(
        rows=((1, 33), (6, 35)), num_tokens=8, max_rows=4, pages_per_row=5
    ),
    "bfloat16": AttentionCase(
        rows=((1, 40), (1, 7), (5, 5), (13, 33)), num_tokens=32, max_rows=8, dtype="bfloat16"
    ),
}


class AttentionContract:
    """What an implementation must satisfy; subclasses say how it is called."""

    def attend(self, inputs: AttentionInputs, scale: float) -> jax.Array:
        """The implementation's result."""
        raise NotImplementedError

    @pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
    def test_equals_dense_attention(self, case: AttentionCase) -> None:
        inputs = make_inputs(case)
        seen = np.asarray(self.attend(inputs, 0.25), np.float64)
        tolerance = BFLOAT16_TOLERANCE if case.dtype == "bfloat16" else FLOAT32_TOLERANCE
        np.testing.assert_allclose(seen, dense_attention(case, inputs, 0.25), atol=tolerance)

    def test_a_row_does_not_depend_on_its_neighbours(self) -> None:
        case = AttentionCase(rows=((1, 50), (1, 20), (9, 41)), num_tokens=16, max_rows=4)
        inputs = make_inputs(case)
        together = np.asarray(self.attend(inputs, 0.25))
        batch = inputs.batch
        alone = replace(
            inputs.batch,
            query_start=batch.query_start.at[:3].set(jnp.array([2, 0, 0])),
            query_len=batch.query_len.at[:3].set(jnp.array([9, 0, 0])),
            kv_len=batch.kv_len.at[:3].set(jnp.array([41, 0, 0])),
            block_tables=batch.block_tables.at[0].set(batch.block_tables[2]),
            num_single_rows=jnp.int32(0),
            num_rows=jnp.int32(1),
        )
        lone = self.attend(AttentionInputs(inputs.q, inputs.k_pages, inputs.v_pages, alone), 0.25)
        np.testing.assert_array_equal(together[2:11], np.asarray(lone)[2:11])

    def test_nan_stays_in_its_row(self) -> None:
        """A lane or tile that held NaN gives its next row clean results."""
        case = AttentionCase(rows=((1, 20), (1, 30), (5, 9), (6, 40)), num_tokens=16, max_rows=4)
        inputs = make_inputs(case)
        poisoned = inputs.q.at[0].set(jnp.nan).at[2:7].set(jnp.nan)
        seen = np.asarray(
            self.attend(
                AttentionInputs(poisoned, inputs.k_pages, inputs.v_pages, inputs.batch), 0.25
            )
        )
        expected = dense_attention(case, inputs, 0.25)
        assert np.isnan(seen[[0, 2, 6]]).all()
        np.testing.assert_allclose(
            seen[[1, *range(7, 13)]], expected[[1, *range(7, 13)]], atol=FLOAT32_TOLERANCE
        )

    def test_a_wrong_mask_is_noticed(self) -> None:
        """The dense check can fail: one key more or less at a page's edge is far off."""
        case = AttentionCase(rows=((1, 17),), num_tokens=2, max_rows=1)
        inputs = make_inputs(case)
        short = replace(inputs.batch, kv_len=inputs.batch.kv_len - 1)
        seen = self.attend(AttentionInputs(inputs.q, inputs.k_pages, inputs.v_pages, short), 0.25)
        expected = dense_attention(case, inputs, 0.25)
        assert np.abs(np.asarray(seen)[0] - expected[0]).max() > 100 * FLOAT32_TOLERANCE


class TestReference(AttentionContract):
    """The XLA reference with tiles so small that every loop turns several times."""

    def attend(self, inputs: AttentionInputs, scale: float) -> jax.Array:
        """The reference's result."""
        return attend_reference(inputs, scale, SMALL_TILES)


def attend_reference(
    inputs: AttentionInputs, scale: float, config: ReferenceConfig, first_page: int = 0
) -> jax.Array:
    """The public call, compiled."""

    def call(q: jax.Array, k: jax.Array, v: jax.Array, batch: RaggedBatch) -> jax.Array:
        work = plan_work(batch, num_tokens=q.shape[0], config=config)
        return ragged_paged_attention(
            q, k, v, work, scale=scale, config=config, first_page=jnp.int32(first_page)
        )

    return jax.jit(call)(inputs.q, inputs.k_pages, inputs.v_pages, inputs.batch)


@given(st.data())
@settings(max_examples=15)
def test_random_mixes_equal_dense_attention(data: st.DataObject) -> None:
    singles = data.draw(st.lists(st.integers(1, 60), max_size=4))
    chunks = data.draw(st.lists(st.tuples(st.integers(2, 9), st.integers(0, 50)), max_size=3))
    case = AttentionCase(
        rows=(*((1, keys) for keys in singles), *((q, q + before) for q, before in chunks)),
        num_tokens=32,
        max_rows=8,
    )
    inputs = make_inputs(case, seed=data.draw(st.integers(0, 99)))
    seen = np.asarray(attend_reference(inputs, 0.25, SMALL_TILES))
    expected = dense_attention(case, inputs, 0.25)
    np.testing.assert_allclose(seen, expected, atol=FLOAT32_TOLERANCE)


def test_the_default_tiles_equal_dense_attention() -> None:
    """The sizes that the engine runs with; CASES are checked with sizes that loop more."""
    case = AttentionCase(
        rows=((1, 200), (1, 7), (70, 150)), num_tokens=96, max_rows=8, pages_per_row=32
    )
    inputs = make_inputs(case)
    seen = np.asarray(attend_reference(inputs, 0.25, ReferenceConfig()))
    expected = dense_attention(case, inputs, 0.25)
    np.testing.assert_allclose(seen, expected, atol=FLOAT32_TOLERANCE)


def test_pages_of_a_later_layer() -> None:
    """A pool that holds two layers end to end gives the same for the second."""
    case = CASES["mix"]
    inputs = make_inputs(case)
    alone = attend_reference(inputs, 0.25, SMALL_TILES)
    pools = [
        jnp.concatenate([jnp.full_like(p, jnp.nan), p]) for p in (inputs.k_pages, inputs.v_pages)
    ]
    both = AttentionInputs(inputs.q, pools[0], pools[1], inputs.batch)
    seen = attend_reference(both, 0.25, SMALL_TILES, first_page=inputs.k_pages.shape[0])
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(alone))


@pytest.mark.parametrize("change", ["heads", "size", "pools"])
def test_shapes_that_do_not_fit_are_named(change: str) -> None:
    case = CASES["one decode"]
    inputs = make_inputs(case)
    q, k, v = inputs.q, inputs.k_pages, inputs.v_pages
    if change == "heads":
        q = q[:, :5]
    elif change == "size":
        q = q[..., :8]
    else:
        v = v[1:]
    work = plan_work(inputs.batch, num_tokens=1, config=SMALL_TILES)
    with pytest.raises(ValueError, match=r"\("):
        ragged_paged_attention(q, k, v, work, scale=1.0, config=SMALL_TILES)
