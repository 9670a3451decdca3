"""Which implementation serves a shape on a device, and why another can't."""

from __future__ import annotations

from dataclasses import replace

from pallas_kernels.ragged_paged_attention.config import (
    AttentionConfig,
    AttentionNative,
    ReferenceConfig,
)
from pallas_kernels.ragged_paged_attention.heuristics import hopper_heuristic, split_rule
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.tuned import tuned_config
from pallas_kernels.target import Implementation, Target, choose, common_obstacle

PAGE_SIZES = (16, 32, 64, 128)
MAX_GROUP = 16
MAX_NATIVE_GROUP = 96  # rows of a tile, which holds at least one query of every head


def select_config(
    shape: AttentionShape, target: Target, *, implementation: Implementation | None = None
) -> AttentionConfig:
    """The configuration for a shape on a device; its class says which implementation it is.

    None takes the best that serves the shape there: Mosaic GPU on Hopper, Triton on other CUDA
    devices from compute capability 8.0 on, the native kernel on a CPU where it was built, XLA
    elsewhere and for what the kernels can't do. A GPU kernel's sizes are those that ``autotune``
    found for exactly this shape on this kind of device, the heuristics' where nobody ran it.

    Raises:
        ValueError: a named implementation can't serve the shape there; the message says why. Or the
            file of tuned sizes is broken.
    """
    chosen = choose(implementation, lambda name: _obstacle(shape, target, name))
    if chosen == "xla":
        return ReferenceConfig()
    if chosen == "native":
        return AttentionNative()
    return _config(shape, target, chosen)


def _obstacle(shape: AttentionShape, target: Target, implementation: Implementation) -> str | None:
    """Why an implementation can't serve the shape on the device; None where it can."""
    reason = common_obstacle(
        target,
        implementation,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
        kv_dtype=shape.kv_dtype,
    )
    if reason is not None:
        return reason
    if implementation == "native":
        if shape.group > MAX_NATIVE_GROUP:
            return f"takes up to {MAX_NATIVE_GROUP} query heads a kv head, not {shape.group}"
        return None
    if shape.page_size not in PAGE_SIZES:
        return f"takes page_size {', '.join(map(str, PAGE_SIZES))}, not {shape.page_size}"
    if shape.group > MAX_GROUP:
        return f"takes up to {MAX_GROUP} query heads a kv head, not {shape.group}"
    return None


def _config(
    shape: AttentionShape, target: Target, implementation: Implementation
) -> AttentionConfig:
    tuned = tuned_config(shape, target.kind, implementation)
    if tuned is not None:
        return tuned
    if implementation == "mosaic_gpu":
        return hopper_heuristic(shape, target)
    # Imported where it is wanted: Pallas takes a second.
    from pallas_kernels.ragged_paged_attention.triton import triton_heuristic

    config = triton_heuristic(shape, shared_memory=target.shared_memory)
    return replace(config, splits=split_rule(shape, target))
