"""Where one GPU's memory goes, before and after the step is compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastgen_jax.config import ResolvedConfig
from fastgen_jax.errors import ConfigError
from fastgen_jax.kv.layout import bytes_per_block
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.tensors import tensor_shapes
from fastgen_jax.parallel.division import fitting_tensor_sizes
from fastgen_jax.plan.gpus import Gpu
from fastgen_jax.plan.load import ITEM_SIZES
from fastgen_jax.sampling.row_limits import RowLimits

# What a process takes of a GPU before its first array: CUDA's context, loaded kernels, cuBLAS and
# NCCL. An assumption; between 0.5 and 1.5 GiB is usual.
RESERVED_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Bytes by use on each GPU.

    Attributes:
        total: what the driver shows.
        reserved: taken by the CUDA context and libraries; assumed.
        weights: this GPU's share.
        row_state: settings and token histories; every GPU has all of them.
        step: temporary space and fresh results of the largest step, by the compiler's own analysis.
        kv_cache: blocks, at the engine's default fraction of what is left.
        kv_tokens: tokens that fit; each GPU holds its heads of every token.
        bytes_per_token: of keys and values on each GPU.
    """

    total: int
    reserved: int
    weights: int
    row_state: int
    step: int
    kv_cache: int
    kv_tokens: int
    bytes_per_token: int


def plan_memory(
    model: ModelConfig,
    config: ResolvedConfig,
    limits: RowLimits,
    gpu: Gpu,
    *,
    devices: int,
    step_bytes: int | None = None,
) -> GpuMemory:
    """The memory of one of ``devices`` GPUs; without ``step_bytes`` with a generous guess.

    Raises:
        ConfigError: a request of the longest length doesn't fit; names bytes and a remedy.
    """
    step = _guess_step_bytes(model, config, devices) if step_bytes is None else step_bytes
    weights = weight_bytes(model, dtype=config.dtype, devices=devices)
    row_state = config.max_num_seqs * limits.neutral_row.size * 4
    block = _block_bytes(model, config, devices)
    left = gpu.memory - RESERVED_BYTES - weights - row_state - step
    if left < (config.max_blocks_per_seq + 1) * block:
        raise _too_large(model, config, limits, gpu, devices=devices, left=left)
    wanted = int(left * config.kv_cache_memory_fraction) // block
    num_blocks = max(wanted, config.max_blocks_per_seq + 1)
    return GpuMemory(
        total=gpu.memory,
        reserved=RESERVED_BYTES,
        weights=weights,
        row_state=row_state,
        step=step,
        kv_cache=num_blocks * block,
        kv_tokens=(num_blocks - 1) * config.block_size,  # block 0 holds nothing
        bytes_per_token=block // config.block_size,
    )


def weight_bytes(model: ModelConfig, *, dtype: str, devices: int) -> int:
    """Weights on each of the GPUs: a share of every matrix, and all vectors."""
    count = 0
    for shape in tensor_shapes(model).values():
        count += math.prod(shape) // (devices if len(shape) > 1 else 1)
    return count * ITEM_SIZES[dtype]


def _block_bytes(model: ModelConfig, config: ResolvedConfig, devices: int) -> int:
    return bytes_per_block(
        num_layers=model.num_layers,
        num_kv_heads=max(1, model.num_kv_heads // devices),
        head_dim=model.head_dim,
        itemsize=ITEM_SIZES[config.dtype],
        block_size=config.block_size,
    )


def _guess_step_bytes(model: ModelConfig, config: ResolvedConfig, devices: int) -> int:
    tokens, rows = config.step_shapes[-1]
    width = 6 * model.hidden_size + 3 * model.intermediate_size // devices
    return 4 * (tokens * width + 3 * rows * model.vocab_size // devices)


def _too_large(
    model: ModelConfig,
    config: ResolvedConfig,
    limits: RowLimits,
    gpu: Gpu,
    *,
    devices: int,
    left: int,
) -> ConfigError:
    weights = weight_bytes(model, dtype=config.dtype, devices=devices)
    request = (config.max_blocks_per_seq + 1) * _block_bytes(model, config, devices)
    larger = [size for size in fitting_tensor_sizes(model) if size > devices]
    fitting = next((n for n in larger if _fits(model, config, limits, gpu, n)), None)
    remedy = f"use tp={fitting}" if fitting else "use a larger GPU, or a smaller model or context"
    return ConfigError(
        f"the model doesn't fit {devices} x {gpu.name}: weights take {_gb(weights)} of "
        f"{_gb(gpu.memory)} on each GPU, {_gb(max(left, 0))} are left for the cache, and a "
        f"request of {config.max_model_len} tokens needs {_gb(request)}",
        field="tp",
        value=devices,
        remedy=remedy,
    )


def _fits(
    model: ModelConfig, config: ResolvedConfig, limits: RowLimits, gpu: Gpu, devices: int
) -> bool:
    needed = (
        RESERVED_BYTES
        + weight_bytes(model, dtype=config.dtype, devices=devices)
        + config.max_num_seqs * limits.neutral_row.size * 4
        + _guess_step_bytes(model, config, devices)
        + (config.max_blocks_per_seq + 1) * _block_bytes(model, config, devices)
    )
    return needed <= gpu.memory


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
