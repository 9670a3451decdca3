"""Which implementation of the write serves a shape on a device, and why another can't."""

from __future__ import annotations

from pallas_kernels.kv_write.config import (
    KvWriteConfig,
    KvWriteMosaic,
    KvWriteNative,
    KvWriteReference,
    KvWriteTriton,
)
from pallas_kernels.kv_write.shape import KvWriteShape
from pallas_kernels.target import FP8_DTYPES, Implementation, Target, choose, common_obstacle

MAX_KV_HEADS = 32

_BLOCK_TOKENS = 16
_BLOCK_NUMBERS = 512  # of a token's K * D, in one thread block: 16 KiB for 16 tokens of bfloat16


def select_write_config(
    shape: KvWriteShape, target: Target, *, implementation: Implementation | None = None
) -> KvWriteConfig:
    """The configuration for a shape on a device; its class says which implementation it is.

    None takes the best that serves the shape there: Mosaic GPU on Hopper, Triton on other CUDA
    devices from compute capability 8.0 on, the native kernel on a CPU where it was built, XLA
    elsewhere and for what the kernels can't do.

    Raises:
        ValueError: a named implementation can't serve the shape there; the message says why.
    """
    chosen = choose(implementation, lambda name: _obstacle(shape, target, name))
    if chosen == "xla":
        return KvWriteReference(drop_padding=target.platform == "gpu")
    if chosen == "native":
        return KvWriteNative()
    return _config(shape, target, chosen)


def _obstacle(shape: KvWriteShape, target: Target, implementation: Implementation) -> str | None:
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
        return None
    if shape.rotary_dim % 16:
        return f"takes a rotary_dim that is a multiple of 16, not {shape.rotary_dim}"
    if shape.num_kv_heads > MAX_KV_HEADS:
        return f"takes up to {MAX_KV_HEADS} kv heads, not {shape.num_kv_heads}"
    if implementation == "triton":
        return _triton_obstacle(shape, target)
    return None


def _triton_obstacle(shape: KvWriteShape, target: Target) -> str | None:
    if shape.kv_dtype == "float8_e4m3fn" and target.compute_capability < (8, 9):
        capability = ".".join(str(part) for part in target.compute_capability)
        return f"converts to float8_e4m3fn from compute capability 8.9 on, this is {capability}"
    # It goes over to 64-bit offsets at 2**32 bytes; with one byte a number that is too late.
    if shape.kv_dtype in FP8_DTYPES and 2**31 < shape.pool_elements <= 2**32:
        return (
            f"can't address 8-bit pages of more than {2**31} and up to {2**32} numbers, "
            f"a pool has {shape.pool_elements}"
        )
    return None


def _config(shape: KvWriteShape, target: Target, implementation: Implementation) -> KvWriteConfig:
    if implementation == "triton":
        return KvWriteTriton(block_tokens=_BLOCK_TOKENS)
    return KvWriteMosaic(block_tokens=_BLOCK_TOKENS, block_heads=_block_heads(shape, target))


def _block_heads(shape: KvWriteShape, target: Target) -> int:
    """Heads of a thread block: few enough to fill the device, else as many as have room."""
    divisors = [n for n in range(1, shape.num_kv_heads + 1) if shape.num_kv_heads % n == 0]
    fitting = [n for n in divisors if n * shape.head_dim <= _BLOCK_NUMBERS]
    item_bytes = 1 if shape.kv_dtype in FP8_DTYPES else 2
    # A token that isn't a multiple of 128 bytes has to be padded in shared memory.
    whole = [n for n in fitting if n * shape.head_dim * item_bytes % 128 == 0] or fitting
    token_blocks = -(-shape.num_tokens // _BLOCK_TOKENS)
    filling = [n for n in whole if token_blocks * shape.num_kv_heads // n >= target.num_sms]
    return max(filling) if filling else min(whole)
