"""The merge of split rows: partial results weighted by their sums, written over the output.

Plain loads and stores, so one source serves every GPU that Mosaic GPU compiles for.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.ragged_paged_attention.units import KernelWork

_THREADS = 128
_MOST_VALUES = 1024  # of one turn: 8 a thread in each of its arrays


def merge_splits(
    out: Float[Array, "T W"],
    partial: Float[Array, "N2 W"],
    sums: Float[Array, "N2 W"],
    work: KernelWork,
    *,
    num_blocks: int,
) -> Float[Array, "T W"]:
    """``out`` with the rows of split tokens merged from their partial results, in place.

    W is heads times head size, a multiple of 128. The splits of a token are folded in their order,
    whatever finished first. Only splits that exist are read.
    """
    width = out.shape[1]
    values = next(n for n in range(_MOST_VALUES, 0, -_THREADS) if width % n == 0)
    parts = width // values

    def body(merges: Any, num_merges: Any, partial: Any, sums: Any, out: Any) -> None:
        block, num_items = lax.axis_index("block"), num_merges[0] * parts

        def merge(index: Array, _: None) -> None:
            item = block + index * num_blocks
            place, part = lax.div(item, jnp.int32(parts)), lax.rem(item, jnp.int32(parts))
            token, count, first, stride = (merges[place, field] for field in range(4))
            columns = pl.ds(part * values, values)

            def fold(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                seen, top, total = state
                slot = first + i * stride
                log_sum = sums[slot, columns]
                raised = jnp.maximum(top, log_sum)
                fading, weight = jnp.exp2(top - raised), jnp.exp2(log_sum - raised)
                seen = seen * fading + partial[slot, columns] * weight
                return seen, raised, total * fading + weight

            zeros = jnp.zeros((values,), jnp.float32)
            state = (zeros, jnp.full((values,), -1e30, jnp.float32), zeros)
            seen, _, total = lax.fori_loop(0, count, fold, state)
            merged = (seen / total).astype(out.dtype)
            plgpu.store(out.at[token, columns], merged, optimized=False)

        turns = lax.div(num_items - block + (num_blocks - 1), jnp.int32(num_blocks))
        lax.fori_loop(0, jnp.maximum(turns, 0), merge, None)

    merged = jax.new_ref(out)
    plgpu.kernel(
        body,
        out_type=(),
        grid=(num_blocks,),
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        kernel_name="ragged_paged_attention_merge",
    )(work.merges, work.num_merges, partial, sums, merged)
    return jax.freeze(merged)
