"""The window as an operand, for a loop over layers that differ in it."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    AttentionNative,
    HopperConfig,
    ReferenceConfig,
    plan_work,
    ragged_paged_attention,
)
from pallas_kernels.native import native_obstacle
from tests.pallas_kernels.attention_contract import Scenario, mix
from tests.pallas_kernels.dense_attention import AttentionInputs

pytestmark = pytest.mark.usefixtures("jax_strict")

SCENARIO = Scenario(case=mix(num_heads=4, num_kv_heads=2))
WINDOWS = (1, 7, 16, 33, 2**30)
CONFIGS = [
    ReferenceConfig(decode_keys=16, decode_lanes=1, chunk_queries=4, chunk_keys=16),
    pytest.param(
        AttentionNative(),
        marks=pytest.mark.skipif(native_obstacle() is not None, reason=str(native_obstacle())),
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_loop_may_attend_with_another_window_every_turn(
    config: ReferenceConfig | AttentionNative,
) -> None:
    @jax.jit
    def run(inputs: AttentionInputs, windows: jax.Array) -> jax.Array:
        work = plan_work(inputs.batch, shape=SCENARIO.shape, config=config)

        def attend(window: jax.Array) -> jax.Array:
            return ragged_paged_attention(
                inputs.q,
                inputs.k_pages,
                inputs.v_pages,
                work,
                options=SCENARIO.options,
                config=config,
                window=window,
            )

        return jax.lax.map(attend, windows)

    inputs = SCENARIO.inputs()
    found = np.asarray(run(inputs, jnp.asarray(WINDOWS, jnp.int32)), np.float64)
    for seen, window in zip(found, WINDOWS, strict=True):
        replace(SCENARIO, window=window).check(seen, inputs)


def test_a_kernel_for_gpus_takes_it_as_a_number() -> None:
    inputs = SCENARIO.inputs()
    config = HopperConfig()
    work = plan_work(inputs.batch, shape=SCENARIO.shape, config=config)
    with pytest.raises(ValueError, match="window"):
        ragged_paged_attention(
            inputs.q,
            inputs.k_pages,
            inputs.v_pages,
            work,
            options=SCENARIO.options,
            config=config,
            window=jnp.int32(4),
        )
