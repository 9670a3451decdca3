"""The step that a plan is about, as the engine would specify it on the GPU."""

from __future__ import annotations

from fastgen_jax.batching import StepShape
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.plan.gpus import Gpu
from fastgen_jax.runtime.cache import cache_spec
from fastgen_jax.runtime.step import StepSpec
from pallas_kernels import Target


def plan_spec(
    model: ModelConfig,
    step_shape: tuple[int, int],
    *,
    num_blocks: int,
    block_size: int,
    max_model_len: int,
    max_logprobs: int,
    dtype: str,
) -> StepSpec:
    """A step of (tokens, rows) over unrolled layers, its kernels not yet chosen."""
    return StepSpec(
        shape=StepShape(*step_shape),
        max_blocks_per_seq=-(-max_model_len // block_size),
        max_logprobs=max_logprobs,
        cache=cache_spec(
            model,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=dtype,
            unroll_layers=True,
        ),
    )


def target_of_gpu(gpu: Gpu) -> Target:
    """The GPU as the kernels are told of it."""
    return Target(
        platform="gpu",
        compute_capability=gpu.compute_capability,
        num_sms=gpu.num_sms,
        shared_memory=gpu.shared_per_block,
        kind=gpu.title,
    )
