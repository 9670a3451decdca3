"""The devices that kernels are chosen for, and the implementations there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pallas_kernels.native import native_obstacle

Implementation = Literal["mosaic_gpu", "triton", "native", "xla"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("mosaic_gpu", "triton", "native", "xla")

HEAD_DIMS = (64, 80, 96, 128, 256)
HALF_DTYPES = ("bfloat16", "float16")
FP8_DTYPES = ("float8_e4m3fn", "float8_e5m2")
NATIVE_DTYPES = ("bfloat16", "float32")
MAX_NATIVE_HEAD_DIM = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The device that a kernel is chosen for.

    Attributes:
        platform: "cpu" or "gpu" (CUDA).
        compute_capability: major and minor; (0, 0) on a CPU.
        num_sms: multiprocessors; 0 on a CPU.
        shared_memory: bytes that one thread block may take; 0 on a CPU.
        kind: the device's name, under which tuned sizes are filed.
    """

    platform: str
    compute_capability: tuple[int, int] = (0, 0)
    num_sms: int = 0
    shared_memory: int = 0
    kind: str = ""


CPU = Target(platform="cpu")
H100 = Target(
    platform="gpu",
    compute_capability=(9, 0),
    num_sms=132,
    shared_memory=232448,
    kind="NVIDIA H100 80GB HBM3",
)
A100 = Target(
    platform="gpu",
    compute_capability=(8, 0),
    num_sms=108,
    shared_memory=166912,
    kind="NVIDIA A100-SXM4-80GB",
)


def target_of(device: Any) -> Target:
    """The target that a jax device is, compile-only ones included."""
    if device.platform == "cpu":
        return CPU
    if device.platform not in ("gpu", "cuda"):
        return Target(platform=device.platform)
    major, minor = (int(part) for part in str(device.compute_capability).split("."))
    return Target(
        platform="gpu",
        compute_capability=(major, minor),
        num_sms=device.core_count,
        shared_memory=_SHARED_MEMORY.get((major, minor), _LEAST_SHARED_MEMORY),
        kind=device.device_kind,
    )


def choose(
    implementation: Implementation | None,
    obstacle: Callable[[Implementation], str | None],
) -> Implementation:
    """The implementation asked for, or the first in the order of preference that can serve.

    Args:
        implementation: what was asked for; None takes the best.
        obstacle: why one can't serve; None where it can. Not asked about XLA, which always can.

    Raises:
        ValueError: the one asked for is unknown or can't serve; the message says why.
    """
    if implementation is None:
        for name in IMPLEMENTATIONS:
            if name == "xla" or obstacle(name) is None:
                return name
        raise AssertionError("XLA serves everything")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} is unknown: use None or one of "
            + ", ".join(repr(name) for name in IMPLEMENTATIONS)
        )
    reason = None if implementation == "xla" else obstacle(implementation)
    if reason is not None:
        raise ValueError(
            f'implementation="{implementation}": {reason}; '
            "use implementation=None for the best that serves it"
        )
    return implementation


def common_obstacle(
    target: Target, implementation: Implementation, *, head_dim: int, dtype: str, kv_dtype: str
) -> str | None:
    """What no kernel of an implementation can do on a device, whatever the operation."""
    if implementation == "native":
        return _native_obstacle(target, head_dim=head_dim, dtype=dtype, kv_dtype=kv_dtype)
    if target.platform != "gpu":
        return f"needs a CUDA GPU, this is {target.platform!r}"
    capability = ".".join(str(part) for part in target.compute_capability)
    if implementation == "mosaic_gpu" and target.compute_capability != (9, 0):
        return f"is written for compute capability 9.0 (H100, H200), this is {capability}"
    if implementation == "triton" and target.compute_capability < (8, 0):
        return f"needs compute capability 8.0 or later, this is {capability}"
    if dtype not in HALF_DTYPES:
        return f"computes in {' or '.join(HALF_DTYPES)}, not in {dtype}"
    if kv_dtype != dtype and kv_dtype not in FP8_DTYPES:
        return f"takes pages of {dtype} or {' or '.join(FP8_DTYPES)}, not {kv_dtype}"
    if head_dim not in HEAD_DIMS:
        return f"takes head_dim {', '.join(map(str, HEAD_DIMS))}, not {head_dim}"
    return None


def no_native_kernels(target: Target) -> str | None:
    """Why a device has no native kernels of any operation; None where it has."""
    if target.platform != "cpu":
        return f"runs on a CPU, this is {target.platform!r}"
    reason = native_obstacle()
    return None if reason is None else f"there are no native kernels here: {reason}"


def _native_obstacle(target: Target, *, head_dim: int, dtype: str, kv_dtype: str) -> str | None:
    reason = no_native_kernels(target)
    if reason is not None:
        return reason
    if dtype not in NATIVE_DTYPES:
        return f"takes {' or '.join(NATIVE_DTYPES)}, not {dtype}"
    if kv_dtype not in (*NATIVE_DTYPES, *FP8_DTYPES):
        return f"takes pages of {' or '.join((*NATIVE_DTYPES, *FP8_DTYPES))}, not {kv_dtype}"
    if head_dim % 8 or head_dim > MAX_NATIVE_HEAD_DIM:
        return f"takes head_dim in multiples of 8 up to {MAX_NATIVE_HEAD_DIM}, not {head_dim}"
    return None


# Bytes that one thread block may take, by compute capability (CUDA C Programming Guide, table of
# technical specifications).
_SHARED_MEMORY = {(8, 0): 166912, (8, 7): 166912, (9, 0): 232448, (10, 0): 232448}
_LEAST_SHARED_MEMORY = 101376  # of 8.6, 8.9 and 12.0
