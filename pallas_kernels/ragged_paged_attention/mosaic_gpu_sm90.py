"""The attention for Hopper: Pallas Mosaic GPU with bulk tensor copies and warpgroup products.

A persistent grid: every thread block holds streams, pairs of a loading and a computing warpgroup
that work through the units on their own. The loader fetches a unit's queries and, block by block,
its keys and values into a ring of stages; the computing warpgroup turns each block into scores,
an online softmax and a weighted sum (Dao, FlashAttention-2; the query heads of a group share a
tile, so their keys are read once).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.ragged_paged_attention.config import TILE_ROWS, HopperConfig
from pallas_kernels.ragged_paged_attention.heuristics import output_width
from pallas_kernels.ragged_paged_attention.mosaic_gpu_merge import merge_splits
from pallas_kernels.ragged_paged_attention.options import AttentionOptions
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.sm90_compute import LOG2_E, compute_units
from pallas_kernels.ragged_paged_attention.sm90_kernel import Kernel, Variant
from pallas_kernels.ragged_paged_attention.sm90_load import load_units
from pallas_kernels.ragged_paged_attention.units import KernelWork, num_slots

# Of 65536, for two warpgroups of 128 threads each; one stream has as many as threads can have.
_COMPUTE_REGISTERS = 224
_LOAD_REGISTERS = 32

ENGINE = Variant()  # the kernel as it is used


# Compiled on its own so that a step's layers, which differ in their arrays alone, are traced and
# lowered once; XLA puts it in line again.
@functools.partial(jax.jit, static_argnames=("shape", "options", "config", "variant"))
def ragged_paged_attention_sm90(
    q: Float[Array, "T H D"],
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    work: KernelWork,
    *,
    shape: AttentionShape,
    options: AttentionOptions,
    config: HopperConfig,
    sinks: Float[Array, "H"] | None,
    k_scales: Float[Array, "K"] | None,
    v_scales: Float[Array, "K"] | None,
    variant: Variant = ENGINE,
) -> Float[Array, "T H D"]:
    """What each query sees of its row's keys; what tokens of no unit hold is undefined."""
    kernel = Kernel(
        shape=shape,
        options=options,
        config=config,
        variant=variant,
        has_sinks=sinks is not None,
        has_scales=k_scales is not None,
    )
    width = output_width(shape)
    num_heads = shape.num_heads
    if num_heads * width % 128 != 0:
        num_heads += 1  # the merge works on whole pieces of 128 values
    slots = (num_slots(shape, config.splits), num_heads, width)
    operands = [work.units, work.num_units, work.block_tables, _packed_queries(q, shape)]
    operands += [k_pages, v_pages]
    if sinks is not None:
        operands.append(_tile_sinks(sinks, shape))
    if k_scales is not None and v_scales is not None:
        operands += [k_scales, v_scales]
    results = [jax.ShapeDtypeStruct((shape.num_tokens, num_heads, width), q.dtype)]
    if kernel.can_split:
        results += [jax.ShapeDtypeStruct(slots, jnp.float32)] * 2

    def body(*refs: Any, **scratch: Any) -> None:
        _run(kernel, refs, scratch)

    out, *partials = plgpu.kernel(
        body,
        out_type=results,
        scratch_types=kernel.scratch(),
        grid=(config.num_blocks,),
        grid_names=("block",),
        num_threads=2 * config.streams,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        kernel_name="ragged_paged_attention_sm90",
    )(*operands)
    if partials:
        flat, partial, sums = (array.reshape(array.shape[0], -1) for array in (out, *partials))
        flat = merge_splits(flat, partial, sums, work, num_blocks=config.num_blocks)
        out = flat.reshape(out.shape)
    return out[:, : shape.num_heads, : shape.head_dim]


def _packed_queries(q: Float[Array, "T H D"], shape: AttentionShape) -> Float[Array, "K TG D"]:
    """Queries with a group's heads side by side, so that a tile is one piece of memory.

    XLA fuses this into whatever computed q. The tile's worth of rows at the end lets the last
    token's tile reach beyond it.
    """
    num_tokens, _, head_dim = q.shape
    grouped = q.reshape(num_tokens, shape.num_kv_heads, shape.group, head_dim).swapaxes(0, 1)
    rows = grouped.reshape(shape.num_kv_heads, num_tokens * shape.group, head_dim)
    return jnp.pad(rows, ((0, 0), (0, TILE_ROWS), (0, 0)))


def _tile_sinks(sinks: Float[Array, "H"], shape: AttentionShape) -> Float[Array, "K 64"]:
    """Each tile row's sink, in units of log2."""
    copies = -(-TILE_ROWS // shape.group)
    grouped = sinks.reshape(shape.num_kv_heads, shape.group).astype(jnp.float32) * LOG2_E
    return jnp.tile(grouped, (1, copies))[:, :TILE_ROWS]


def _run(kernel: Kernel, refs: tuple[Any, ...], scratch: dict[str, Any]) -> None:
    """The kernel: half of the warpgroups compute, half load."""
    warpgroup, streams = lax.axis_index("warpgroup"), kernel.config.streams
    for stream in range(streams):
        memory = kernel.memory_of(stream, refs, scratch)

        @pl.when(warpgroup == stream)
        def _compute(stream: int = stream, memory: dict[str, Any] = memory) -> None:
            if streams > 1:
                plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
            compute_units(kernel, memory, stream)

        @pl.when(warpgroup == streams + stream)
        def _load(stream: int = stream, memory: dict[str, Any] = memory) -> None:
            if streams > 1:
                plgpu.set_max_registers(_LOAD_REGISTERS, action="decrease")
            load_units(kernel, memory, stream)
