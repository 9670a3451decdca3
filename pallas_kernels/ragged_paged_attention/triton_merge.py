"""Partial results of split rows made one, as a Pallas-Triton kernel."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float

from pallas_kernels.ragged_paged_attention.units import KernelWork

_ELEMENTS = 2048  # heads times head size of a program: 16 registers a thread and array
_LOWEST = -1e30


class _Inputs(NamedTuple):
    """Arrays outside the kernel, refs to them inside."""

    out: Any  # [T, H, D]
    part_out: Any  # float32 [slots, H, D]
    part_lse: Any  # float32 [slots, H]
    merges: Any  # [M, 4]
    num_merges: Any  # [1]


def merge_splits(
    out: Float[Array, "T H D"],
    part_out: Float[Array, "C H D"],
    part_lse: Float[Array, "C H"],
    work: KernelWork,
    *,
    interpret: bool = False,
) -> Float[Array, "T H D"]:
    """``out`` with the split tokens' results written into it, in place.

    ``part_out`` holds results of C slots, each normalised by its own sum, ``part_lse`` the log2 of
    those sums. Only slots that a merge names are read. Splits are added in the order of their
    keys, in float32.
    """
    num_heads, head_dim = out.shape[1:]
    heads = min(pl.next_power_of_2(num_heads), max(1, _ELEMENTS // pl.next_power_of_2(head_dim)))
    return pl.pallas_call(
        functools.partial(ragged_paged_attention_merge, heads=heads),
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        grid=(pl.cdiv(num_heads, heads), work.merges.shape[0]),
        input_output_aliases={0: 0},
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="ragged_paged_attention_merge",
    )(
        _Inputs(
            out=out,
            part_out=part_out,
            part_lse=part_lse,
            merges=work.merges,
            num_merges=work.num_merges,
        )
    )


def ragged_paged_attention_merge(inputs: _Inputs, out: Any, *, heads: int) -> None:
    """The kernel, one program for a token and some of its heads."""
    block, merge = pl.program_id(0), pl.program_id(1)
    num_heads, head_dim = out.shape[1:]

    @pl.when(merge < inputs.num_merges[0])
    def _() -> None:
        token, count, first_slot, stride = (inputs.merges[merge, field] for field in range(4))
        head = block * heads + jnp.arange(heads, dtype=jnp.int32)
        dim = jnp.arange(pl.next_power_of_2(head_dim), dtype=jnp.int32)
        is_head = head < num_heads
        is_place = is_head[:, None] & (dim < head_dim)[None]

        def lse_of(split: Array) -> Array:
            slot = first_slot + split * stride
            return plt.load(inputs.part_lse.at[slot, head], mask=is_head, other=0.0)

        top = lax.fori_loop(
            0,
            count,
            lambda split, top: jnp.maximum(top, lse_of(split)),
            jnp.full(heads, _LOWEST, jnp.float32),
        )

        def add(split: Array, past: tuple[Array, Array]) -> tuple[Array, Array]:
            total, seen = past
            weight = jnp.exp2(lse_of(split) - top)
            place = (first_slot + split * stride, head[:, None], dim[None])
            part = plt.load(inputs.part_out.at[place], mask=is_place, other=0.0)
            return total + weight, seen + weight[:, None] * part

        total, seen = lax.fori_loop(
            0,
            count,
            add,
            (jnp.zeros(heads, jnp.float32), jnp.zeros((heads, dim.shape[0]), jnp.float32)),
        )
        result = (seen / total[:, None]).astype(out.dtype)
        plt.store(out.at[token, head[:, None], dim[None]], result, mask=is_place)
