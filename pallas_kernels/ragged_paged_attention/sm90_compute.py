"""The Hopper kernel's computing side: scores, an online softmax, a weighted sum, and the result."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.ragged_paged_attention.config import TILE_ROWS
from pallas_kernels.ragged_paged_attention.sm90_kernel import Kernel, Memory, Unit

MASKED = -1e30  # finite, so that a wholly masked block gives exp2(0) and never NaN
LOG2_E = math.log2(math.e)


def compute_units(kernel: Kernel, memory: Memory, stream: int) -> None:
    """Attend unit after unit."""
    head_dim = kernel.shape.head_dim

    def run(unit: Unit, turns: Array, index: Array) -> None:
        del index
        plgpu.barrier_wait(memory["q_full"])
        arrived, queries = memory["q_s"]
        pieces = _pieces(head_dim)
        # All is read before any is written: the two share memory.
        read = [plgpu.load(arrived.at[:, piece], optimized=False) for piece in pieces]
        for piece, values in zip(pieces, read, strict=True):
            queries[:, piece] = values
        plgpu.commit_smem()
        seen, top, total = lax.fori_loop(
            0,
            unit.num_blocks,
            lambda i, state: _attend_block(kernel, memory, unit, turns, i, state),
            (
                jnp.zeros((TILE_ROWS, head_dim), jnp.float32),
                jnp.full((TILE_ROWS,), MASKED, jnp.float32),
                jnp.zeros((TILE_ROWS,), jnp.float32),
            ),
        )
        if kernel.variant.plain_products:
            plgpu.commit_smem()
        plgpu.barrier_arrive(memory["q_free"])
        if kernel.has_sinks:
            # Other splits than the first have no part in the sink.
            sink = memory["sinks"][unit.head] + jnp.where(unit.is_first == 1, 0.0, MASKED)
            raised = jnp.maximum(top, sink)
            fading = jnp.exp2(top - raised)
            total = total * fading + jnp.exp2(sink - raised)
            seen = seen * _rows(fading, head_dim)
            top = raised
        total = jnp.maximum(total, 1e-30)
        share = 1.0 / total
        if kernel.has_scales:
            share = share * memory["v_scales"][unit.head]
        _store(kernel, memory, unit, seen * _rows(share, head_dim), top + jnp.log2(total))

    kernel.each_unit(memory, stream, run)


def _attend_block(
    kernel: Kernel,
    memory: Memory,
    unit: Unit,
    turns: Array,
    i: Array,
    state: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """The online softmax taken one block of keys further."""
    seen, top, total = state
    stages = jnp.int32(kernel.config.stages)
    place = lax.rem(turns + i, stages)
    block = unit.first_block + i
    if kernel.variant.fault != "no wait for keys":
        plgpu.barrier_wait(memory["k_full"].at[place])
    keys = memory["k_s"].at[place]
    if kernel.is_cast:
        keys = _cast(kernel, memory, keys)
        plgpu.barrier_arrive(memory["k_free"].at[place])
    scores = _scores(kernel, memory["q_s"][1], keys)
    if not kernel.is_cast:
        _release(kernel, memory["k_free"].at[place])
    scale: Any = kernel.options.scale
    if kernel.has_scales:
        scale = memory["k_scales"][unit.head] * scale
    if kernel.options.softcap is not None:
        softcap = kernel.options.softcap
        scores = jnp.tanh(scores * (scale / softcap)) * (softcap * LOG2_E)
    else:
        scores = scores * (scale * LOG2_E)
    scores = jnp.where(_is_seen(kernel, unit, block), scores, MASKED)
    raised = jnp.maximum(top, scores.max(axis=1))
    fading = jnp.exp2(top - raised)
    weights = jnp.exp2(scores - _rows(raised, kernel.config.block_keys))
    total = total * fading + weights.sum(axis=1)
    if kernel.variant.fault != "no wait for values":
        plgpu.barrier_wait(memory["v_full"].at[place])
    values = memory["v_s"].at[place]
    # What a page holds beyond the row's end is somebody's leftover, possibly NaN, and 0 times
    # NaN is NaN.
    valid = unit.position + unit.queries - block * kernel.config.block_keys
    if kernel.is_cast:
        values = _cast(kernel, memory, values, valid)
        plgpu.barrier_arrive(memory["v_free"].at[place])
    else:

        @pl.when(valid < kernel.config.block_keys)
        def _clear_tail() -> None:
            # In pieces, since the weighted sum takes most of the registers.
            for piece in _pieces(kernel.shape.head_dim):
                values[:, piece] = _without_tail(kernel, values[:, piece], valid)
            plgpu.commit_smem()

    seen = _weighted(kernel, seen * _rows(fading, kernel.shape.head_dim), weights, values)
    if not kernel.is_cast:
        _release(kernel, memory["v_free"].at[place])
    return seen, raised, total


def _scores(kernel: Kernel, queries: Any, keys: Any) -> Float[Array, "64 keys"]:
    if kernel.variant.plain_products:
        wide = queries[...].astype(jnp.float32), keys[...].astype(jnp.float32)
        return jnp.dot(wide[0], wide[1].T)

    def product(accumulator: Any) -> Array:
        plgpu.wgmma(accumulator, queries, keys.transpose((1, 0)))
        return accumulator[...]

    return pl.run_scoped(
        product, plgpu.WGMMAAccumulatorRef((TILE_ROWS, kernel.config.block_keys), jnp.float32)
    )


def _weighted(
    kernel: Kernel, seen: Float[Array, "64 D"], weights: Float[Array, "64 keys"], values: Any
) -> Float[Array, "64 D"]:
    """``seen`` and the weighted sum of the values."""
    weights = weights.astype(jnp.dtype(kernel.shape.dtype))
    if kernel.variant.plain_products:
        wide = weights.astype(jnp.float32), values[...].astype(jnp.float32)
        return seen + jnp.dot(wide[0], wide[1])

    def product(accumulator: Any) -> None:
        plgpu.wgmma(accumulator, weights, values)

    return pl.run_state(product)(plgpu.WGMMAAccumulatorRef.init(seen))  # pyright: ignore[reportReturnType]  # it gives the value back


def _is_seen(kernel: Kernel, unit: Unit, block: Array) -> Array:
    """Which of a block's keys each tile row sees."""
    size = (TILE_ROWS, kernel.config.block_keys)
    query = lax.broadcasted_iota(jnp.int32, (TILE_ROWS,), 0)
    if kernel.shape.group > 1:
        query = lax.div(query, jnp.full((TILE_ROWS,), kernel.shape.group, jnp.int32))
    last = query + unit.position
    if kernel.variant.fault == "wrong mask":
        last = last - 1
    # The block's start is added to the keys, for else the whole difference of rows and keys
    # would be the same in every turn, and kept in registers.
    key = lax.broadcasted_iota(jnp.int32, size, 1) + block * kernel.config.block_keys
    is_seen = key <= _rows(last, kernel.config.block_keys)
    if kernel.options.window is not None:
        before = last - kernel.options.window
        is_seen = is_seen & (key > _rows(before, kernel.config.block_keys))
    return is_seen


def _cast(kernel: Kernel, memory: Memory, block: Any, valid: Any = None) -> Any:
    """The block in the products' dtype; rows from ``valid`` on are zero."""
    target = memory["cast_s"]
    for piece in _pieces(kernel.shape.head_dim):
        # Through float32: the hardware converts 8-bit floats to no other dtype than float16.
        values = block[:, piece].astype(jnp.float32).astype(target.dtype)
        target[:, piece] = values if valid is None else _without_tail(kernel, values, valid)
    plgpu.commit_smem()
    return target


def _without_tail(kernel: Kernel, values: Array, valid: Array) -> Array:
    if kernel.variant.fault == "no tail":
        return values
    key = lax.broadcasted_iota(jnp.int32, values.shape, 0)
    return jnp.where(key < valid, values, jnp.zeros_like(values))


def _release(kernel: Kernel, barrier: Any) -> None:
    if kernel.variant.plain_products:
        # Stands for the finished warpgroup product: plain reads must be fenced off from the
        # copy that refills the place.
        plgpu.commit_smem()
    plgpu.barrier_arrive(barrier)


def _store(kernel: Kernel, memory: Memory, unit: Unit, seen: Array, sums: Array) -> None:
    """The tile's rows to the output, or to the unit's partial slots."""

    def copy_out(values: Array, source: Any, target: Any, first: Array) -> None:
        for piece in _pieces(kernel.shape.head_dim):
            plgpu.store(
                source.at[:, piece],
                values[:, piece].astype(source.dtype),
                # For other sizes the compiler's search for a layout fails or doesn't end.
                optimized=kernel.shape.head_dim in (64, 128),
            )
        plgpu.commit_smem()
        heads = pl.ds(unit.head * kernel.shape.group, kernel.shape.group)

        def copy_query(i: Array, _: None) -> None:
            plgpu.copy_smem_to_gmem(
                source.at[pl.ds(i * kernel.shape.group, kernel.shape.group)],
                target.at[first + i, heads],
            )

        lax.fori_loop(0, unit.queries, copy_query, None)
        plgpu.wait_smem_to_gmem(0)

    if not kernel.can_split:
        copy_out(seen, memory["result_s"], memory["out"], unit.token)
        return
    whole, partial = memory["result_s"]

    @pl.when(unit.slot < 0)
    def _direct() -> None:
        copy_out(seen, whole, memory["out"], unit.token)

    @pl.when(unit.slot >= 0)
    def _partial() -> None:
        copy_out(seen, partial, memory["partial"], unit.slot)
        copy_out(_rows(sums, kernel.shape.head_dim), partial, memory["sums"], unit.slot)


def _rows(values: Float[Array, "64"], width: int) -> Float[Array, "64 W"]:
    return lax.broadcast_in_dim(values, (values.shape[0], width), [0])


def _pieces(head_dim: int) -> list[slice]:
    """Columns in pieces where the whole would take too many registers."""
    width = 64 if head_dim % 64 == 0 else head_dim
    return [slice(i, i + width) for i in range(0, head_dim, width)]
