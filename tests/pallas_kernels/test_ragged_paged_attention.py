"""The attention's public call, and the XLA reference under the shared tests."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import (
    AttentionOptions,
    AttentionShape,
    HopperConfig,
    LayerPages,
    ReferenceConfig,
    plan_work,
    ragged_paged_attention,
)
from tests.pallas_kernels.attention_contract import (
    FLOAT32_TOLERANCE,
    SCENARIOS,
    AttentionContract,
    Scenario,
    mix,
)
from tests.pallas_kernels.dense_attention import AttentionCase, AttentionInputs, dense_attention

pytestmark = pytest.mark.usefixtures("jax_strict")

SMALL_TILES = ReferenceConfig(decode_keys=16, decode_lanes=1, chunk_queries=4, chunk_keys=16)


class TestReference(AttentionContract):
    """The XLA reference with tiles so small that every loop turns several times."""

    def attend(self, scenario: Scenario, inputs: AttentionInputs) -> np.ndarray:
        """The reference's result."""
        return attend_reference(scenario, inputs, SMALL_TILES)


def attend_reference(
    scenario: Scenario, inputs: AttentionInputs, config: ReferenceConfig, layer: int = 0
) -> np.ndarray:
    """The public call, compiled."""
    extras = scenario.extras
    seen = _attend(
        inputs,
        {
            name: None if values is None else jnp.asarray(values)
            for name, values in (
                ("sinks", extras.sinks),
                ("k_scales", extras.k_scales),
                ("v_scales", extras.v_scales),
            )
        },
        jnp.int32(layer),
        shape=scenario.shape,
        options=scenario.options,
        config=config,
    )
    return np.asarray(seen, np.float64)


# Nearly all of a test is the compiler's time.
@functools.partial(
    jax.jit,
    static_argnames=("shape", "options", "config"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def _attend(
    inputs: AttentionInputs,
    extras: dict[str, jax.Array | None],
    layer: jax.Array,
    *,
    shape: AttentionShape,
    options: AttentionOptions,
    config: ReferenceConfig,
) -> jax.Array:
    work = plan_work(inputs.batch, shape=shape, config=config, window=options.window)
    return ragged_paged_attention(
        inputs.q,
        inputs.k_pages,
        inputs.v_pages,
        work,
        options=options,
        config=config,
        layer_pages=LayerPages(layer=layer, pages_per_layer=inputs.k_pages.shape[0] // 2),
        **extras,
    )


@given(st.data())
@settings(max_examples=15)
def test_random_mixes_equal_dense_attention(data: st.DataObject) -> None:
    singles = data.draw(st.lists(st.integers(1, 60), max_size=4))
    chunks = data.draw(st.lists(st.tuples(st.integers(2, 9), st.integers(0, 50)), max_size=3))
    rows = (*((1, keys) for keys in singles), *((q, q + before) for q, before in chunks))
    case = AttentionCase(rows=rows, num_tokens=32, max_rows=8, num_pages=70)
    scenario = Scenario(case=case)
    inputs = scenario.inputs(data.draw(st.integers(0, 99)))
    scenario.check(attend_reference(scenario, inputs, SMALL_TILES), inputs)


@pytest.mark.parametrize("pages_per_row", [32, 27])
def test_the_default_tiles_equal_dense_attention(pages_per_row: int) -> None:
    """The sizes that the engine runs with; a table need not be a multiple of the tile."""
    case = AttentionCase(
        rows=((1, 200), (1, 7), (70, 150)), num_tokens=96, max_rows=8, pages_per_row=pages_per_row
    )
    scenario = Scenario(case=case)
    inputs = scenario.inputs()
    scenario.check(attend_reference(scenario, inputs, ReferenceConfig()), inputs)


def test_pages_of_a_later_layer() -> None:
    """A pool that holds two layers end to end gives the same for the second."""
    scenario = SCENARIOS["group of 4"]
    inputs = scenario.inputs()
    alone = attend_reference(scenario, inputs, SMALL_TILES)
    pools = [
        jnp.concatenate([jnp.full_like(p, jnp.nan), p]) for p in (inputs.k_pages, inputs.v_pages)
    ]
    both = AttentionInputs(inputs.q, pools[0], pools[1], inputs.batch)
    seen = attend_reference(scenario, both, SMALL_TILES, layer=1)
    np.testing.assert_array_equal(seen, alone)


def test_tokens_of_no_row_are_zeros() -> None:
    scenario = SCENARIOS["group of 4"]
    seen = attend_reference(scenario, scenario.inputs(), SMALL_TILES)
    assert not seen[sum(queries for queries, _ in scenario.case.rows) :].any()


def test_a_wrong_mask_is_noticed() -> None:
    """The dense check can fail: one key more or less at a page's edge is far off."""
    scenario = Scenario(case=mix(num_heads=4, num_kv_heads=1, rows=((1, 17),), max_rows=1))
    inputs = scenario.inputs()
    short = replace(inputs.batch, kv_len=inputs.batch.kv_len - 1)
    seen = attend_reference(scenario, replace(inputs, batch=short), SMALL_TILES)
    expected = dense_attention(scenario.case, inputs, scenario.options)
    assert np.abs(seen[0] - expected[0]).max() > 100 * FLOAT32_TOLERANCE


@pytest.mark.parametrize("change", ["heads", "size", "pools", "sinks", "scales", "work"])
def test_arguments_that_do_not_fit_are_named(change: str) -> None:
    scenario = SCENARIOS["one decode"]
    inputs = scenario.inputs()
    q, k, v = inputs.q, inputs.k_pages, inputs.v_pages
    work = plan_work(inputs.batch, shape=scenario.shape, config=SMALL_TILES)
    sinks = k_scales = None
    words = r"\("
    if change == "heads":
        q, k, v = q[:, :3], k.repeat(2, 1), v.repeat(2, 1)
    elif change == "size":
        q = q[..., :8]
    elif change == "pools":
        v = v[1:]
    elif change == "sinks":
        sinks, words = jnp.zeros(3), "sinks"
    elif change == "scales":
        k_scales, words = jnp.ones(1), "k_scales and v_scales"
    else:
        work = plan_work(inputs.batch, shape=scenario.shape, config=HopperConfig())
        words = "KernelWork"
    with pytest.raises(ValueError, match=words):
        ragged_paged_attention(
            q,
            k,
            v,
            work,
            options=scenario.options,
            config=SMALL_TILES,
            sinks=sinks,
            k_scales=k_scales,
        )
