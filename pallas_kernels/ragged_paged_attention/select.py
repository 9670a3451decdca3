"""Which implementation serves a shape on a device, and why another can't."""

from __future__ import annotations

from dataclasses import replace

from pallas_kernels.ragged_paged_attention.config import AttentionConfig, ReferenceConfig
from pallas_kernels.ragged_paged_attention.heuristics import hopper_heuristic, split_rule
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.tuned import tuned_config
from pallas_kernels.target import IMPLEMENTATIONS, Implementation, Target

HEAD_DIMS = (64, 80, 96, 128, 256)
PAGE_SIZES = (16, 32, 64, 128)
MAX_GROUP = 16

_HALF_DTYPES = ("bfloat16", "float16")
_FP8_DTYPES = ("float8_e4m3fn", "float8_e5m2")


def select_config(
    shape: AttentionShape, target: Target, *, implementation: Implementation | None = None
) -> AttentionConfig:
    """The configuration for a shape on a device; its class says which implementation it is.

    None takes the best that serves the shape there: Mosaic GPU on Hopper, Triton on other CUDA
    devices from compute capability 8.0 on, XLA elsewhere and for what the kernels can't do. A
    kernel's sizes are those that ``autotune`` found for exactly this shape on this kind of device,
    the heuristics' where nobody ran it.

    Raises:
        ValueError: a named implementation can't serve the shape there; the message says why. Or the
            file of tuned sizes is broken.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} is unknown: use None or one of "
            + ", ".join(repr(name) for name in IMPLEMENTATIONS)
        )
    if implementation == "xla":
        return ReferenceConfig()
    if implementation is not None:
        reason = _obstacle(shape, target, implementation)
        if reason is not None:
            raise ValueError(
                f'implementation="{implementation}": {reason}; '
                "use implementation=None for the best that serves it"
            )
        return _config(shape, target, implementation)
    for name in ("mosaic_gpu", "triton"):
        if _obstacle(shape, target, name) is None:
            return _config(shape, target, name)
    return ReferenceConfig()


def _obstacle(shape: AttentionShape, target: Target, implementation: Implementation) -> str | None:
    """Why an implementation can't serve the shape on the device; None where it can."""
    if target.platform != "gpu":
        return f"needs a CUDA GPU, this is {target.platform!r}"
    capability = ".".join(str(part) for part in target.compute_capability)
    if implementation == "mosaic_gpu" and target.compute_capability != (9, 0):
        return f"is written for compute capability 9.0 (H100, H200), this is {capability}"
    if implementation == "triton" and target.compute_capability < (8, 0):
        return f"needs compute capability 8.0 or later, this is {capability}"
    if shape.dtype not in _HALF_DTYPES:
        return f"computes in {' or '.join(_HALF_DTYPES)}, q is {shape.dtype}"
    if shape.kv_dtype != shape.dtype and shape.kv_dtype not in _FP8_DTYPES:
        return f"takes pages of q's dtype or of {' or '.join(_FP8_DTYPES)}, not {shape.kv_dtype}"
    if shape.head_dim not in HEAD_DIMS:
        return f"takes head_dim {', '.join(map(str, HEAD_DIMS))}, not {shape.head_dim}"
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
