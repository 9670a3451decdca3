"""The Hopper kernel on a simulated GPU with race detection, and with bugs put into it."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import HopperConfig, RaggedBatch, SplitRule, plan_work
from pallas_kernels.ragged_paged_attention.api import ragged_paged_attention
from pallas_kernels.ragged_paged_attention.mosaic_gpu_sm90 import ragged_paged_attention_sm90
from pallas_kernels.ragged_paged_attention.sm90_kernel import (
    FAULTS,
    Variant,
)
from tests.pallas_kernels.attention_contract import AttentionContract, Scenario, mix
from tests.pallas_kernels.dense_attention import AttentionInputs
from tests.pallas_kernels.mosaic_interpreter import RaceError, interpreted_gpu, reset

pytestmark = pytest.mark.usefixtures("jax_strict")

UNSPLIT = SplitRule(max_splits=1)
SPLIT = SplitRule(keys=32, max_splits=3, max_tile_splits=2)


@pytest.fixture(autouse=True)
def _clean_interpreter() -> Iterator[None]:
    yield
    reset()


def attend_interpreted(
    scenario: Scenario, inputs: AttentionInputs, *, fault: str | None = None, streams: int = 1
) -> np.ndarray:
    """The kernel as the interpreter runs it; a race is an error."""
    shape = scenario.shape
    config = HopperConfig(
        # Blocks of several pages and of a part of a page; two thread blocks share the units.
        block_keys=32,
        stages=2,
        streams=streams,
        num_blocks=2,
        splits=SPLIT if scenario.is_split else UNSPLIT,
    )
    extras = scenario.extras

    def call(q: jax.Array, k: jax.Array, v: jax.Array, batch: RaggedBatch) -> jax.Array:
        work = plan_work(batch, shape=shape, config=config, window=scenario.window)
        return ragged_paged_attention_sm90(
            q,
            k,
            v,
            work,
            shape=shape,
            options=scenario.options,
            config=config,
            sinks=None if extras.sinks is None else jnp.asarray(extras.sinks),
            k_scales=None if extras.k_scales is None else jnp.asarray(extras.k_scales),
            v_scales=None if extras.v_scales is None else jnp.asarray(extras.v_scales),
            variant=Variant(plain_products=True, fault=fault),
        )

    with interpreted_gpu():
        seen = jax.jit(call)(inputs.q, inputs.k_pages, inputs.v_pages, inputs.batch)
        return np.asarray(seen, np.float64)


class TestInterpreted(AttentionContract):
    """The kernel's own code on a simulated GPU."""

    def attend(self, scenario: Scenario, inputs: AttentionInputs) -> np.ndarray:
        """The interpreter's result."""
        return attend_interpreted(scenario, inputs)

    def test_two_streams(self) -> None:
        """Streams of one thread block share nothing."""
        scenario = Scenario(case=mix(num_heads=8, num_kv_heads=2), is_split=True)
        inputs = scenario.inputs()
        scenario.check(attend_interpreted(scenario, inputs, streams=2), inputs)

    @pytest.mark.parametrize("head_dim", [80, 96, 256])
    def test_head_sizes(self, head_dim: int) -> None:
        case = mix(
            num_heads=2, num_kv_heads=2, head_dim=head_dim, rows=((1, 40), (9, 33)), max_rows=3
        )
        scenario = Scenario(case=case)
        inputs = scenario.inputs()
        scenario.check(attend_interpreted(scenario, inputs), inputs)


@pytest.mark.gpu
class TestOnTheGpu(AttentionContract):
    """The public call as a GPU runs it; float32 cases are taken in bfloat16."""

    def attend(self, scenario: Scenario, inputs: AttentionInputs) -> np.ndarray:
        """The GPU's result."""
        from pallas_kernels import select_config
        from pallas_kernels.target import target_of

        if scenario.case.dtype == "float32":
            pytest.skip("the kernels compute in 16 bits")
        shape, extras = scenario.shape, scenario.extras
        config = select_config(shape, target_of(jax.devices()[0]))
        assert not isinstance(config, type(None))
        work = plan_work(inputs.batch, shape=shape, config=config, window=scenario.window)
        seen = ragged_paged_attention(
            inputs.q,
            inputs.k_pages,
            inputs.v_pages,
            work,
            options=scenario.options,
            config=config,
            sinks=None if extras.sinks is None else jnp.asarray(extras.sinks),
            k_scales=None if extras.k_scales is None else jnp.asarray(extras.k_scales),
            v_scales=None if extras.v_scales is None else jnp.asarray(extras.v_scales),
        )
        return np.asarray(seen, np.float64)


FAULTY = Scenario(case=mix(num_heads=4, num_kv_heads=1, rows=((1, 100), (1, 17), (9, 81))))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault: str) -> None:
    """By the race detector, or by numbers that are wrong."""
    inputs = FAULTY.inputs()
    with pytest.raises((RaceError, AssertionError)):
        FAULTY.check(attend_interpreted(FAULTY, inputs, fault=fault), inputs)


def test_the_scenario_of_the_faults_passes_without_one() -> None:
    inputs = FAULTY.inputs()
    FAULTY.check(attend_interpreted(FAULTY, inputs), inputs)
