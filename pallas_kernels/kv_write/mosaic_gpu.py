"""The write as a Mosaic GPU kernel for Hopper: bulk copies through shared memory.

A thread block takes the keys and values of a few tokens and heads into shared memory, rotates and
converts them there, and sends each token to its slot with a bulk copy of its own. Registers never
meet an address in the pages, so neither head size nor number of heads has to suit the warpgroup.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.config import KvWriteMosaic
from pallas_kernels.kv_write.reference import Rotation
from pallas_kernels.kv_write.shape import is_fp8

_COPY_ALIGNMENT = 128  # bytes in shared memory at which a bulk copy may begin
_KEYS, _VALUES = 0, 1  # barriers


class _Global(NamedTuple):
    """Refs outside the thread block; None for what a call doesn't have."""

    k: Any  # [T, K, D]
    v: Any  # [T, K, D]
    page_ids: Any  # [T]
    slots: Any  # [T]
    cos: Any  # float32 [T, D2]
    sin: Any  # float32 [T, D2]
    k_scales: Any  # float32 [K]
    v_scales: Any  # float32 [K]
    k_pages: Any  # [N, K, S, D]
    v_pages: Any  # [N, K, S, D]


class _Shared(NamedTuple):
    """Refs in the thread block's shared memory, a row for each of its tokens."""

    k: Any  # [rows, heads, D]
    v: Any  # [rows, heads, D]
    cos: Any  # float32 [rows, D2]
    sin: Any  # float32 [rows, D2]
    k_out: Any  # [rows, padded heads, D] of the pages' dtype; None where k takes the result
    v_out: Any  # likewise
    barriers: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Static sizes of a launch."""

    num_tokens: int
    num_heads: int
    head_dim: int
    half: int  # D2; 0 without rotation
    dtype: Any  # of keys and values
    page_dtype: Any
    block_tokens: int
    block_heads: int

    @property
    def grid(self) -> tuple[int, int]:
        return (-(-self.num_tokens // self.block_tokens), self.num_heads // self.block_heads)

    @property
    def loaded_tokens(self) -> int:
        """Rows of a thread block that hold tokens; the others are computed and never stored."""
        return min(self.block_tokens, self.num_tokens)

    @property
    def out_heads(self) -> int:
        """Heads of a row in ``out`` buffers, so many that every row begins where a copy may."""
        head_bytes = self.head_dim * jnp.dtype(self.page_dtype).itemsize
        unit = _COPY_ALIGNMENT // math.gcd(_COPY_ALIGNMENT, head_bytes)
        return -(-self.block_heads // unit) * unit

    @property
    def has_out(self) -> bool:
        """Whether results need buffers of their own: another dtype, or padded rows."""
        return self.dtype != self.page_dtype or self.out_heads != self.block_heads

    @property
    def limit(self) -> float | None:
        """Largest number that 8-bit pages hold; None for others."""
        name = str(jnp.dtype(self.page_dtype))
        return float(jnp.finfo(self.page_dtype).max) if is_fp8(name) else None

    def shared_memory(self) -> _Shared:
        """What a thread block allocates."""
        rows, dim = self.block_tokens, self.head_dim
        values = plgpu.SMEM((rows, self.block_heads, dim), self.dtype)
        table = plgpu.SMEM((rows, self.half), jnp.float32) if self.half else None
        out = plgpu.SMEM((rows, self.out_heads, dim), self.page_dtype) if self.has_out else None
        return _Shared(
            k=values,
            v=values,
            cos=table,
            sin=table,
            k_out=out,
            v_out=out,
            barriers=[
                plgpu.Barrier(num_arrivals=3 if self.half else 1),
                plgpu.Barrier(num_arrivals=1),
            ],
        )


# Compiled on its own so that a step's layers, which differ in their arrays alone, are traced and
# lowered once; XLA puts it in line again.
@functools.partial(jax.jit, static_argnames="config")
def write_kv_mosaic(
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    page_ids: Int[Array, "T"],
    slots: Int[Array, "T"],
    *,
    rotation: Rotation | None = None,
    k_scales: Float[Array, "K"] | None = None,
    v_scales: Float[Array, "K"] | None = None,
    config: KvWriteMosaic,
) -> tuple[Float[Array, "N K S D"], Float[Array, "N K S D"]]:
    """Both page arrays with every token written that isn't padding; see ``api.write_kv``.

    Raises:
        ValueError: ``config.block_heads`` doesn't divide K.
    """
    num_tokens, num_heads, head_dim = k.shape
    if num_heads % config.block_heads != 0:
        raise ValueError(f"block_heads={config.block_heads}: must divide the {num_heads} kv heads")
    cos, sin = (None, None) if rotation is None else rotation
    plan = _Plan(
        num_tokens=num_tokens,
        num_heads=num_heads,
        head_dim=head_dim,
        half=0 if cos is None else cos.shape[1],
        dtype=k.dtype,
        page_dtype=k_pages.dtype,
        block_tokens=config.block_tokens,
        block_heads=config.block_heads,
    )
    # Refs are what a kernel changes in place; pages that the caller donates are never copied.
    k_ref, v_ref = jax.new_ref(k_pages), jax.new_ref(v_pages)
    arrays = _Global(k, v, page_ids, slots, cos, sin, k_scales, v_scales, k_ref, v_ref)

    def kv_write(*refs: Any) -> None:
        given = iter(refs[: len(operands)])
        outside = _Global(*(None if array is None else next(given) for array in arrays))
        _write_block(outside, refs[-1], plan)

    operands = [array for array in arrays if array is not None]
    plgpu.kernel(
        kv_write,
        out_type=(),
        scratch_types=(plan.shared_memory(),),
        grid=plan.grid,
        grid_names=("token_block", "head_block"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(*operands)
    return jax.freeze(k_ref), jax.freeze(v_ref)


def _write_block(outside: _Global, inside: _Shared, plan: _Plan) -> None:
    block_start = lax.axis_index("token_block") * plan.block_tokens
    # The last block begins early enough to be full; it leaves the tokens before its own alone.
    first = jnp.minimum(block_start, plan.num_tokens - plan.loaded_tokens)
    first_head = lax.axis_index("head_block") * plan.block_heads
    heads = pl.ds(first_head, plan.block_heads)
    tokens, rows = pl.ds(first, plan.loaded_tokens), pl.ds(0, plan.loaded_tokens)
    keys, values = inside.barriers[_KEYS], inside.barriers[_VALUES]
    plgpu.copy_gmem_to_smem(outside.v.at[tokens, heads], inside.v.at[rows], values)
    plgpu.copy_gmem_to_smem(outside.k.at[tokens, heads], inside.k.at[rows], keys)
    if plan.half:
        plgpu.copy_gmem_to_smem(outside.cos.at[tokens], inside.cos.at[rows], keys)
        plgpu.copy_gmem_to_smem(outside.sin.at[tokens], inside.sin.at[rows], keys)
    pages = [outside.page_ids[first + row] for row in range(plan.loaded_tokens)]
    slots = [outside.slots[first + row] for row in range(plan.loaded_tokens)]

    def send(source: Any, target: Any) -> None:
        """Starts a copy of every token's row to its slot."""
        for row, (page, slot) in enumerate(zip(pages, slots, strict=True)):

            @pl.when(_is_own(first, row, block_start, page))
            def _(row: int = row, page: Array = page, slot: Array = slot) -> None:
                plgpu.copy_smem_to_gmem(
                    source.at[row, pl.ds(0, plan.block_heads)], target.at[page, heads, slot]
                )

    plgpu.barrier_wait(values)
    if plan.has_out:
        _pass_on(inside.v, inside.v_out, outside.v_scales, first_head, plan)
        plgpu.commit_smem()
    send(inside.v_out if plan.has_out else inside.v, outside.v_pages)

    plgpu.barrier_wait(keys)
    k_out = inside.k_out if plan.has_out else inside.k
    if plan.half:
        _rotate(inside, k_out, outside.k_scales, first_head, plan)
    elif plan.has_out:
        _pass_on(inside.k, k_out, outside.k_scales, first_head, plan)
    if plan.half or plan.has_out:
        plgpu.commit_smem()
    send(k_out, outside.k_pages)
    plgpu.wait_smem_to_gmem(0)


def _is_own(first: Array, row: int, block_start: Array, page: Array) -> Array:
    """Whether a row is neither padding nor a token of the block before."""
    return (page != 0) & (first + row >= block_start)


def _rotate(inside: _Shared, k_out: Any, scales: Any, first_head: Array, plan: _Plan) -> None:
    half, end = plan.half, 2 * plan.half
    cos, sin = inside.cos[...], inside.sin[...]
    for head in range(plan.block_heads):
        scale = None if scales is None else scales[first_head + head]
        low = inside.k[:, head, :half].astype(jnp.float32)
        high = inside.k[:, head, half:end].astype(jnp.float32)
        k_out[:, head, :half] = _as_stored(low * cos - high * sin, scale, plan)
        k_out[:, head, half:end] = _as_stored(high * cos + low * sin, scale, plan)
        if end < plan.head_dim and plan.has_out:
            rest = inside.k[:, head, end:]
            k_out[:, head, end:] = _as_stored(rest.astype(jnp.float32), scale, plan)


def _pass_on(source: Any, out: Any, scales: Any, first_head: Array, plan: _Plan) -> None:
    for head in range(plan.block_heads):
        scale = None if scales is None else scales[first_head + head]
        out[:, head] = _as_stored(source[:, head].astype(jnp.float32), scale, plan)


def _as_stored(values: Array, scale: Array | None, plan: _Plan) -> Array:
    """Float32 numbers as the pages hold them."""
    if scale is not None:
        values = values / scale
    if plan.limit is not None:
        values = jnp.clip(values, -plan.limit, plan.limit)
    return values.astype(plan.page_dtype)
