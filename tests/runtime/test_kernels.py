"""The kernels that a step gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastgen_jax.batching import StepShape
from fastgen_jax.errors import ConfigError
from fastgen_jax.models.shapes import SHAPES
from fastgen_jax.runtime.cache import cache_spec
from fastgen_jax.runtime.compiler_options import compiler_options
from fastgen_jax.runtime.kernels import with_kernels
from fastgen_jax.runtime.step import StepSpec
from pallas_kernels import (
    A100,
    CPU,
    H100,
    AttentionNative,
    HopperConfig,
    KvWriteMosaic,
    KvWriteNative,
    KvWriteReference,
    KvWriteTriton,
    ReferenceConfig,
    TritonConfig,
)
from pallas_kernels.native import native_obstacle

MODEL = SHAPES["llama-3.1-8b"]
SPEC = StepSpec(
    shape=StepShape(256, 256),
    max_blocks_per_seq=256,
    max_logprobs=20,
    cache=cache_spec(MODEL, num_blocks=1000, block_size=32, dtype="bfloat16", unroll_layers=True),
)


needs_native = pytest.mark.skipif(native_obstacle() is not None, reason=str(native_obstacle()))
needs_no_native = pytest.mark.skipif(native_obstacle() is None, reason="the kernels are there")


@pytest.mark.parametrize(
    ("target", "attention", "kv_write", "groups"),
    [
        (H100, HopperConfig, KvWriteMosaic, 8),
        (A100, TritonConfig, KvWriteTriton, 8),
        pytest.param(CPU, AttentionNative, KvWriteNative, 1, marks=needs_native),
        pytest.param(CPU, ReferenceConfig, KvWriteReference, 1, marks=needs_no_native),
    ],
)
def test_a_device_gets_its_kernels(target, attention, kv_write, groups) -> None:
    spec = with_kernels(SPEC, MODEL, target)
    assert isinstance(spec.attention, attention)
    assert isinstance(spec.kv_write, kv_write)
    assert spec.sampling_groups == groups


def test_a_share_of_the_heads_counts() -> None:
    """One kv head a device leaves it idle unless tiles are split."""
    step = replace(SPEC, shape=StepShape(768, 256))
    whole = with_kernels(step, MODEL, H100)
    shared = with_kernels(step, MODEL, H100, num_shards=8)
    assert isinstance(whole.attention, HopperConfig)
    assert isinstance(shared.attention, HopperConfig)
    assert whole.attention.splits.max_tile_splits == 1
    assert shared.attention.splits.max_tile_splits > 1


def test_one_that_cannot_serve_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"implementation='triton'.*needs a CUDA GPU"):
        with_kernels(SPEC, MODEL, CPU, implementation="triton")


def test_only_gpus_have_options() -> None:
    assert compiler_options("tpu") == {}
    assert "xla_cpu_parallel_codegen_split_count" in compiler_options("cpu")
    assert compiler_options("gpu")["xla_gpu_dot_merger_threshold_mb"] == "0"
