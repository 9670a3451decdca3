"""The write as a Pallas-Triton kernel: CUDA devices from compute capability 8.0 on.

Triton is used although Pallas has deprecated it: without bulk copies, Mosaic GPU could only store
whole arrays that its 128 threads share out evenly, and one token's heads often aren't. The warning
comes when a program that holds the kernel is lowered, so whoever compiles it has to filter it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.kv_write.config import KvWriteTriton
from pallas_kernels.kv_write.reference import Rotation
from pallas_kernels.kv_write.shape import is_fp8


class _Inputs(NamedTuple):
    """Arrays outside the kernel, refs to them inside; None for what a call doesn't have."""

    k_pages: Any  # [N, K, S, D]
    v_pages: Any  # [N, K, S, D]
    k: Any  # [T, K, D]
    v: Any  # [T, K, D]
    page_ids: Any  # [T]
    slots: Any  # [T]
    cos: Any  # float32 [T, D2]
    sin: Any  # float32 [T, D2]
    k_scales: Any  # float32 [K]
    v_scales: Any  # float32 [K]


class _Tile(NamedTuple):
    """A program's tokens and head, each of the tokens' numbers as a column [B, 1]."""

    head: Array
    tokens: Int[Array, "B 1"]
    pages: Int[Array, "B 1"]
    slots: Int[Array, "B 1"]
    is_token: Bool[Array, "B 1"]


# Compiled on its own so that a step's layers are traced and lowered once; XLA puts it in line.
@functools.partial(jax.jit, static_argnames=("config", "interpret"))
def write_kv_triton(
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
    config: KvWriteTriton,
    interpret: bool = False,
) -> tuple[Float[Array, "N K S D"], Float[Array, "N K S D"]]:
    """Both page arrays with every token written that isn't padding; see ``api.write_kv``.

    ``interpret`` runs the kernel as plain jax, on any device.
    """
    cos, sin = (None, None) if rotation is None else rotation
    arrays = _Inputs(k_pages, v_pages, k, v, page_ids, slots, cos, sin, k_scales, v_scales)
    operands = [array for array in arrays if array is not None]

    def kv_write(*refs: Any) -> None:
        given = iter(refs[: len(operands)])
        inputs = _Inputs(*(None if array is None else next(given) for array in arrays))
        k_out, v_out = refs[len(operands) :]
        _write_tile(inputs, k_out, v_out, config.block_tokens)

    k_pages, v_pages = pl.pallas_call(
        kv_write,
        out_shape=tuple(jax.ShapeDtypeStruct(p.shape, p.dtype) for p in (k_pages, v_pages)),
        grid=(-(-k.shape[0] // config.block_tokens), k.shape[1]),
        input_output_aliases={0: 0, 1: 1},
        compiler_params=plt.CompilerParams(num_warps=config.num_warps, num_stages=1),
        interpret=interpret,
    )(*operands)
    return k_pages, v_pages


def _write_tile(inputs: _Inputs, k_out: Any, v_out: Any, block_tokens: int) -> None:
    num_tokens, _, head_dim = inputs.k.shape
    row = jax.lax.broadcasted_iota(jnp.int32, (block_tokens,), 0)
    token = pl.program_id(0) * block_tokens + row
    in_step = token < num_tokens
    page = plt.load(inputs.page_ids.at[token], mask=in_step, other=0)
    slot = plt.load(inputs.slots.at[token], mask=in_step, other=0)
    tile = _Tile(
        head=pl.program_id(1),
        tokens=token[:, None],
        pages=page[:, None],
        slots=slot[:, None],
        is_token=(in_step & (page != 0))[:, None],
    )
    start = 0
    if inputs.cos is not None:
        half = inputs.cos.shape[1]
        low, high = _read(inputs.k, tile, 0, half), _read(inputs.k, tile, half, half)
        cos, sin = _read_table(inputs.cos, tile), _read_table(inputs.sin, tile)
        scale = _scale(inputs.k_scales, tile)
        _store(k_out, low * cos - high * sin, scale, tile, 0, half)
        _store(k_out, high * cos + low * sin, scale, tile, half, half)
        start = 2 * half
    if start < head_dim:
        rest = _read(inputs.k, tile, start, head_dim - start)
        _store(k_out, rest, _scale(inputs.k_scales, tile), tile, start, head_dim - start)
    values = _read(inputs.v, tile, 0, head_dim)
    _store(v_out, values, _scale(inputs.v_scales, tile), tile, 0, head_dim)


def _read(ref: Any, tile: _Tile, start: int, width: int) -> Float[Array, "B W"]:
    """Numbers ``start`` to ``start + width`` of the tile's keys or values, in float32."""
    place, mask = _columns(tile, width)
    where = _together(tile, place, tile.tokens, tile.head, start + place)
    return plt.load(ref.at[where], mask=mask, other=0).astype(jnp.float32)


def _read_table(ref: Any, tile: _Tile) -> Float[Array, "B W"]:
    place, mask = _columns(tile, ref.shape[1])
    return plt.load(ref.at[_together(tile, place, tile.tokens, place)], mask=mask, other=0)


def _store(
    ref: Any,
    values: Float[Array, "B W"],
    scale: Array | None,
    tile: _Tile,
    start: int,
    width: int,
) -> None:
    if scale is not None:
        values = values / scale
    if is_fp8(str(ref.dtype)):
        limit = float(jnp.finfo(ref.dtype).max)
        values = jnp.clip(values, -limit, limit)
    place, mask = _columns(tile, width)
    where = _together(tile, place, tile.pages, tile.head, tile.slots, start + place)
    plt.store(ref.at[where], values.astype(ref.dtype), mask=mask)


def _columns(tile: _Tile, width: int) -> tuple[Int[Array, "1 W"], Bool[Array, "B W"]]:
    """Places of ``width`` numbers, filled up to a power of two, and which of them there are."""
    place = jax.lax.broadcasted_iota(jnp.int32, (1, pl.next_power_of_2(width)), 1)
    shape = (tile.tokens.shape[0], place.shape[1])
    mask = jnp.broadcast_to(place < width, shape) & jnp.broadcast_to(tile.is_token, shape)
    return place, mask


def _together(tile: _Tile, place: Int[Array, "1 W"], *indices: Array) -> tuple[Array, ...]:
    """Indices of a tile's numbers, one full array for each axis."""
    shape = (tile.tokens.shape[0], place.shape[1])
    return tuple(jnp.broadcast_to(index, shape) for index in indices)


def _scale(scales: Any, tile: _Tile) -> Array | None:
    return None if scales is None else scales[tile.head]
