"""The kernels that a step gets on a device."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.runtime.step import StepSpec, attention_shape
from pallas_kernels import (
    Implementation,
    KvWriteShape,
    Target,
    select_config,
    select_write_config,
)

# What the sampler makes beside the logits then takes a few eighths of their size. A CPU compiles
# loops slowly and has memory.
_SAMPLING_GROUPS = 8


def with_kernels(
    spec: StepSpec,
    model: ModelConfig,
    target: Target,
    *,
    implementation: Implementation | None = None,
    num_shards: int = 1,
) -> StepSpec:
    """``spec`` with the kernels that serve it best on a device, or with the named ones.

    Args:
        spec: the step; what it says of kernels is replaced.
        model: shape of the decoder.
        target: the device.
        implementation: of attention and page write; None takes the best that serves each.
        num_shards: devices that the heads are split over.

    Raises:
        ConfigError: the named implementation can't serve the step there; the message says why.
    """
    attention = attention_shape(model, spec, num_shards=num_shards)
    write = KvWriteShape(
        num_tokens=attention.num_tokens,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        rotary_dim=model.ropes[0].rotary_dim if model.ropes else 0,
        num_pages=spec.cache.pool_shape[0],
        page_size=attention.page_size,
        dtype=attention.dtype,
        kv_dtype=attention.kv_dtype,
    )
    try:
        return replace(
            spec,
            attention=select_config(attention, target, implementation=implementation),
            kv_write=select_write_config(write, target, implementation=implementation),
            sampling_groups=1 if target.platform == "cpu" else _SAMPLING_GROUPS,
        )
    except ValueError as error:
        raise ConfigError(
            str(error), field="implementation", value=implementation, remedy="leave it out"
        ) from error
