"""The Triton kernel, interpreted on a CPU, and what becomes of mistakes in its work."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.ragged_paged_attention.config import SplitRule, TritonConfig
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.triton import (
    ragged_paged_attention_triton,
    triton_heuristic,
    widened,
)
from pallas_kernels.ragged_paged_attention.units import DIRECT, KernelWork, plan_units
from tests.pallas_kernels.attention_contract import SCENARIOS, AttentionContract, Scenario, mix
from tests.pallas_kernels.dense_attention import AttentionInputs

pytestmark = pytest.mark.usefixtures("jax_strict")

A100_SHARED_MEMORY = 166912
UNSPLIT = SplitRule(max_splits=1)
SPLIT = SplitRule(keys=16, max_splits=4, max_tile_splits=3)
# Nearly all of a test is the compiler's time.
UNOPTIMIZED = {"xla_backend_optimization_level": 0}

plan = jax.jit(
    plan_units, static_argnames=("shape", "config", "window"), compiler_options=UNOPTIMIZED
)
attend = jax.jit(
    ragged_paged_attention_triton,
    static_argnames=("shape", "options", "config", "interpret"),
    compiler_options=UNOPTIMIZED,
)


def config_of(scenario: Scenario, splits: SplitRule | None = None) -> TritonConfig:
    """Blocks of several pages, and of one where it is split.

    Odd groups get tiles too large for the small product, the others are spared compiling those.
    """
    if splits is None:
        splits = SPLIT if scenario.is_split else UNSPLIT
    return TritonConfig(
        block_keys=32 if splits == UNSPLIT else 16,
        tile_rows=32 if scenario.shape.group % 2 else 16,
        splits=splits,
    )


def plan_of(scenario: Scenario, inputs: AttentionInputs, config: TritonConfig) -> KernelWork:
    return plan(inputs.batch, shape=scenario.shape, config=config, window=scenario.window)


def result_of(
    scenario: Scenario,
    inputs: AttentionInputs,
    config: TritonConfig,
    work: KernelWork,
    *,
    interpret: bool = True,
) -> np.ndarray:
    out = attend(
        inputs.q,
        inputs.k_pages,
        inputs.v_pages,
        work,
        shape=scenario.shape,
        options=scenario.options,
        config=config,
        sinks=scenario.extras.sinks,
        k_scales=scenario.extras.k_scales,
        v_scales=scenario.extras.v_scales,
        interpret=interpret,
    )
    return np.asarray(out, np.float64)


# What the contract leaves out: head and page sizes, dtypes, and splits of one kind alone.
MORE = {
    "head of 80, pages of 32": (
        Scenario(case=mix(num_heads=3, num_kv_heads=1, head_dim=80, page_size=32), window=7),
        UNSPLIT,
    ),
    "head of 96, pages of 64": (
        Scenario(
            case=mix(num_heads=4, num_kv_heads=2, head_dim=96, page_size=64),
            softcap=2.0,
            has_sinks=True,
        ),
        SPLIT,
    ),
    "head of 128, float16, splits of singles": (
        Scenario(
            case=mix(num_heads=7, num_kv_heads=1, head_dim=128, dtype="float16"),
            kv_dtype="float8_e5m2",
        ),
        replace(SPLIT, max_tile_splits=1),
    ),
    "head of 256, group of 16, splits of tiles": (
        Scenario(case=mix(num_heads=16, num_kv_heads=1, head_dim=256)),
        replace(SPLIT, max_splits=1),
    ),
}


class TestInterpreted(AttentionContract):
    """The kernel's own code, run by Pallas's interpreter."""

    def attend(self, scenario: Scenario, inputs: AttentionInputs) -> np.ndarray:
        """The interpreter's result."""
        config = config_of(scenario)
        return result_of(scenario, inputs, config, plan_of(scenario, inputs, config))

    @pytest.mark.parametrize(("scenario", "splits"), MORE.values(), ids=MORE.keys())
    def test_equals_dense_attention_in_other_sizes(
        self, scenario: Scenario, splits: SplitRule
    ) -> None:
        inputs, config = scenario.inputs(), config_of(scenario, splits)
        work = plan_of(scenario, inputs, config)
        row, slot = np.asarray(work.units)[: int(work.num_units[0])][:, [0, 6]].T
        is_single = row < int(inputs.batch.num_single_rows)
        assert (slot[is_single] != DIRECT).any() == (splits.max_splits > 1)
        assert (slot[~is_single] != DIRECT).any() == (splits.max_tile_splits > 1)
        scenario.check(result_of(scenario, inputs, config, work), inputs)

    def test_tokens_of_no_row_are_zeros(self) -> None:
        """Not just undefined, so that nothing left in memory gets into a step."""
        for name in ("group of 1", "splits", "no rows"):
            inputs = SCENARIOS[name].inputs()
            count = sum(queries for queries, _ in SCENARIOS[name].case.rows)
            assert (self.attend(SCENARIOS[name], inputs)[count:] == 0).all()


# Fields of a unit: 1 its first token, 3 that query's position, 4 its first block, 5 its blocks,
# 6 its slot. Row 2 of the mix ends on the edge of a page of 16; row 4 is split.
MUTATIONS = {
    "sees a key past a page's edge": ("group of 1", 2, 3, 1),
    "misses the key before a page's edge": ("group of 1", 2, 3, -1),
    "sees a key past the end, within a page": ("group of 1", 1, 3, 1),
    "a chunk sees a key too many": ("group of 1", 6, 3, 1),
    "takes another row's token": ("group of 1", 3, 1, -1),
    "misses a block": ("splits", 4, 5, -1),
    "begins a block late": ("splits", 4, 4, 1),
    "takes another row's slot": ("splits", 4, 6, 1),
}


@pytest.mark.parametrize(("name", "row", "column", "change"), MUTATIONS.values(), ids=MUTATIONS)
def test_the_check_sees_wrong_work(name: str, row: int, column: int, change: int) -> None:
    scenario = SCENARIOS[name]
    inputs, config = scenario.inputs(), config_of(scenario)
    work = plan_of(scenario, inputs, config)
    units = np.array(work.units)
    unit = int(np.flatnonzero(units[: int(work.num_units[0]), 0] == row)[0])
    units[unit, column] += change
    wrong = result_of(scenario, inputs, config, replace(work, units=jnp.asarray(units)))
    with pytest.raises(AssertionError):
        scenario.check(wrong, inputs)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_float8_is_widened_exactly(name: str, dtype: str) -> None:
    bits = np.arange(256, dtype=np.uint8)
    seen = widened(jnp.asarray(bits), name, jnp.dtype(dtype))
    expected = bits.view(jnp.dtype(name)).astype(np.float32)
    assert seen.dtype == dtype
    np.testing.assert_array_equal(np.asarray(seen, np.float32), expected)


def sizes(**given: object) -> AttentionShape:
    return replace(SCENARIOS["bfloat16"].shape, **given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("shape", "config", "num_pages", "says"),
    [
        (sizes(num_heads=17), TritonConfig(), 2, "num_heads=17: 17 query heads"),
        (sizes(page_size=48), TritonConfig(), 2, "block_keys=64 and page_size=48"),
        (sizes(), TritonConfig(block_keys=48), 2, "block_keys=48: must be a power of two"),
        (sizes(), TritonConfig(tile_rows=8), 2, "tile_rows=8: must be a power of two"),
        (sizes(kv_dtype="float8_e4m3fn"), TritonConfig(), 2**21 + 1, "2 to 4 GiB a layer"),
    ],
    ids=["group", "page size", "block", "tile", "pool that 32 bits can't count"],
)
def test_what_it_cannot_do_is_refused(
    shape: AttentionShape, config: TritonConfig, num_pages: int, says: str
) -> None:
    q = jax.ShapeDtypeStruct((shape.num_tokens, shape.num_heads, shape.head_dim), shape.dtype)
    pages = jax.ShapeDtypeStruct(
        (num_pages, shape.num_kv_heads, shape.page_size, shape.head_dim), shape.kv_dtype
    )
    ints = jnp.zeros((1, 8), jnp.int32)
    work = KernelWork(
        units=ints, num_units=ints[0, :1], merges=ints[:, :4], num_merges=ints[0, :1],
        block_tables=ints,
    )  # fmt: skip
    call = functools.partial(
        ragged_paged_attention_triton,
        shape=shape,
        options=SCENARIOS["bfloat16"].options,
        config=config,
    )
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(call, q, pages, pages, work)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("shared_memory", [101376, A100_SHARED_MEMORY, 232448])
def test_the_heuristic_has_a_block_for_every_page(head_dim: int, shared_memory: int) -> None:
    for page_size in (16, 32, 64, 128):
        for kv_dtype in ("bfloat16", "float8_e4m3fn"):
            shape = sizes(head_dim=head_dim, page_size=page_size, kv_dtype=kv_dtype)
            block = triton_heuristic(shape, shared_memory=shared_memory).block_keys
            assert block % page_size == 0 or page_size % block == 0


def test_the_heuristic_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"head_dim=256: needs \d+ bytes of shared memory"):
        triton_heuristic(sizes(head_dim=256), shared_memory=32768)


@pytest.mark.parametrize("name", ["bfloat16", "splits"])
def test_lowers_for_a_gpu_without_a_warning(name: str) -> None:
    scenario = SCENARIOS[name]
    inputs, config = scenario.inputs(), replace(config_of(scenario), tile_rows=64)
    device = jax.sharding.AbstractDevice(
        device_kind="NVIDIA A100-SXM4-80GB", platform="gpu", num_cores=108
    )
    call = functools.partial(
        ragged_paged_attention_triton,
        shape=scenario.shape,
        options=scenario.options,
        config=config,
    )
    work = plan_of(scenario, inputs, config)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(call).trace(inputs.q, inputs.k_pages, inputs.v_pages, work)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla.gpu.triton") == (2 if scenario.is_split else 1)


@pytest.mark.slow
def test_compiles_for_gpus_without_spills() -> None:
    from fastgen_jax.errors import ConfigError
    from fastgen_jax.plan.deviceless import find_compiler

    try:
        packages = find_compiler()
    except ConfigError as error:
        pytest.skip(str(error))
    script = Path(__file__).with_name("aot_triton.py")
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json"],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)
    assert {row["gpu"] for row in rows} == {"a100", "h100"}
    for row in rows:
        assert row["spill_bytes"] == 0, row
        assert row["shared_memory"] <= row["shared_memory_limit"], row
        assert row["matrix_instructions"] > 0, row
        assert row["async_copies"] > 0, row


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["bfloat16", "8-bit pages"])
@pytest.mark.parametrize("splits", [UNSPLIT, SPLIT], ids=["unsplit", "split"])
def test_equals_dense_attention_on_a_gpu(name: str, splits: SplitRule) -> None:
    scenario = SCENARIOS[name]
    inputs = scenario.inputs()
    config = replace(config_of(scenario, splits), tile_rows=64)
    work = plan_of(scenario, inputs, config)
    scenario.check(result_of(scenario, inputs, config, work, interpret=False), inputs)
