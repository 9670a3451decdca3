"""The attention as a Pallas-Triton kernel: CUDA devices from compute capability 8.0 on.

Triton is used although Pallas has deprecated it: Mosaic GPU can be compiled for Ampere, but its
interpreter doesn't know that path's matrix and copy instructions (mma, cp.async; jax 0.12), so a
kernel of that kind couldn't be tested without a GPU. This one runs as it is on a CPU with
``interpret=True``.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.ragged_paged_attention.config import TritonConfig
from pallas_kernels.ragged_paged_attention.options import AttentionOptions
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.triton_merge import merge_splits
from pallas_kernels.ragged_paged_attention.units import (
    DIRECT,
    KernelWork,
    max_units,
    num_slots,
)

_HOPPER_SHARED_MEMORY = 232448
SMALL_ROWS = 16  # rows of the smallest matrix product; a group's heads must fit in
EMPTY = -1e30  # score of a hidden key, and the log-sum of a split that saw none
LOG2_E = 1.4426950408889634

# A row's largest score starts here: below any true score, and so far above EMPTY that hidden keys
# weigh exactly 0 without another select.
_LOWEST = -1e29


class _Inputs(NamedTuple):
    """Arrays outside the kernel, refs to them inside; None for what a call doesn't have."""

    out: Any  # zeros that the output is written over [T, H, D]
    q: Any  # [T, H, D]
    k_pages: Any  # [N, K, S, D]
    v_pages: Any  # [N, K, S, D]
    units: Any  # [U, 8]
    num_units: Any  # [1]
    block_tables: Any  # [R, P]
    sinks: Any  # [H]
    k_scales: Any  # [K]
    v_scales: Any  # [K]


class _Outputs(NamedTuple):
    out: Any  # [T, H, D]
    part_out: Any = None  # float32 [slots, H, D], where anything is ever split
    part_lse: Any = None  # float32 [slots, H], log2


class _Unit(NamedTuple):
    """One unit's numbers and the kv head it is attended for; all int32 scalars."""

    head: Array
    row: Array
    token: Array
    queries: Array
    position: Array
    first_block: Array
    num_blocks: Array
    slot: Array
    is_first: Array


class _Softmax(NamedTuple):
    """An online softmax over the keys so far."""

    top: Float[Array, "M"]
    total: Float[Array, "M"]
    seen: Float[Array, "M D"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    shape: AttentionShape
    options: AttentionOptions
    config: TritonConfig

    @property
    def padded_dim(self) -> int:
        return pl.next_power_of_2(self.shape.head_dim)


def triton_heuristic(shape: AttentionShape, *, shared_memory: int) -> TritonConfig:
    """Sizes that compile without spills and fit ``shared_memory``, bytes of a thread block.

    Chosen from compilations for A100 and H100, not from timings.

    Raises:
        ValueError: not even the smallest blocks fit.
    """
    head_dim = pl.next_power_of_2(shape.head_dim)
    tile_rows, block_keys = 64, 64
    num_warps = 4 if head_dim <= 128 else 8
    if head_dim == 128 and jnp.dtype(shape.kv_dtype).itemsize == 1:
        block_keys = 32  # widening takes registers
    elif head_dim == 128 and shared_memory < _HOPPER_SHARED_MEMORY:
        # On Ampere the products take their operands from registers: too many for 4 warps.
        num_warps = 8

    def needed() -> int:
        # Queries, weights, keys, values in 16 bits. Hopper's pipeline holds keys and values
        # twice, but Hopper also has that much more.
        return 2 * (tile_rows * (head_dim + block_keys) + 2 * block_keys * head_dim)

    while needed() > shared_memory and block_keys > SMALL_ROWS:
        block_keys //= 2
    if needed() > shared_memory:
        raise ValueError(
            f"head_dim={shape.head_dim}: needs {needed()} bytes of shared memory, the device has "
            f"{shared_memory}; use implementation='xla'"
        )
    return TritonConfig(
        block_keys=block_keys,
        tile_rows=tile_rows,
        num_warps=num_warps,
        num_stages=2,
    )


def ragged_paged_attention_triton(
    q: Float[Array, "T H D"],
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    work: KernelWork,
    *,
    shape: AttentionShape,
    options: AttentionOptions,
    config: TritonConfig,
    sinks: Float[Array, "H"] | None = None,
    k_scales: Float[Array, "K"] | None = None,
    v_scales: Float[Array, "K"] | None = None,
    interpret: bool = False,
) -> Float[Array, "T H D"]:
    """What each query sees of its row's keys; zeros for tokens that no unit holds.

    ``work`` comes from ``plan_units`` with the same shape and config. ``sinks`` are scores of one
    more key per query head, of value 0. Scales, one a kv head, undo those of 8-bit pages: of the
    keys in the scores, of the values in the result. Scores, softmax and sums are float32, the
    products take q's dtype. Splits are merged in the order of their keys.

    Raises:
        ValueError: sizes that the kernel isn't cut for; the message names them.
    """
    call = _Call(shape=shape, options=options, config=config)
    _check(call, k_pages)
    _hide_deprecation()
    inputs = _Inputs(
        out=jnp.zeros_like(q),
        q=q,
        k_pages=_as_bits(k_pages),
        v_pages=_as_bits(v_pages),
        units=work.units,
        num_units=work.num_units,
        block_tables=work.block_tables,
        sinks=sinks,
        k_scales=k_scales,
        v_scales=v_scales,
    )
    return _launch(inputs, work, call=call, interpret=interpret)


# Compiled on its own so that a step's layers, which differ in their arrays alone, are traced and
# lowered once; XLA puts it in line again.
@functools.partial(jax.jit, static_argnames=("call", "interpret"))
def _launch(inputs: _Inputs, work: KernelWork, *, call: _Call, interpret: bool) -> Array:
    shape, config, q = call.shape, call.config, inputs.q
    splits = num_slots(shape, config.splits)
    partial = [_float32(splits, *q.shape[1:]), _float32(splits, q.shape[1])] if splits else []
    out, *partial = pl.pallas_call(
        functools.partial(ragged_paged_attention, call=call),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), *partial],
        grid=(shape.num_kv_heads, max_units(shape, config)),
        # Tokens that no unit holds are written by nobody and stay zeros.
        input_output_aliases={0: 0},
        compiler_params=plt.CompilerParams(
            num_warps=config.num_warps, num_stages=config.num_stages
        ),
        interpret=interpret,
        name="ragged_paged_attention",
    )(inputs)
    if not partial:
        return out
    part_out, part_lse = partial
    return merge_splits(out, part_out, part_lse, work, interpret=interpret)


def _hide_deprecation() -> None:
    # Raised when the program is lowered, so it can't be caught around the call.
    warnings.filterwarnings(
        "ignore", message="The Pallas Triton backend is deprecated", category=DeprecationWarning
    )


def _check(call: _Call, k_pages: Array) -> None:
    shape, config = call.shape, call.config
    if shape.group > SMALL_ROWS:
        raise ValueError(
            f"num_heads={shape.num_heads}: {shape.group} query heads to a kv head, the Triton "
            f"kernel takes up to {SMALL_ROWS}; use implementation='xla'"
        )
    if config.block_keys % shape.page_size != 0 and shape.page_size % config.block_keys != 0:
        raise ValueError(
            f"block_keys={config.block_keys} and page_size={shape.page_size}: "
            "one must be a multiple of the other"
        )
    for name, value in (("block_keys", config.block_keys), ("tile_rows", config.tile_rows)):
        if value < SMALL_ROWS or value & (value - 1):
            raise ValueError(f"{name}={value}: must be a power of two from {SMALL_ROWS} on")
    # Pallas-Triton counts elements in 32 bits up to 4 GiB, which bytes outgrow at 2 GiB.
    if k_pages.dtype.itemsize == 1 and 2**31 < k_pages.size <= 2**32:
        raise ValueError(
            f"k_pages {k_pages.shape}: 8-bit pages of 2 to 4 GiB a layer can't be addressed; "
            "use fewer pages, or 16-bit pages"
        )


def ragged_paged_attention(inputs: _Inputs, *output_refs: Any, call: _Call) -> None:
    """The kernel, one program for a unit and a kv head; its name is the one profilers show."""
    outputs = _Outputs(*output_refs)
    head, index = pl.program_id(0), pl.program_id(1)

    @pl.when(index < inputs.num_units[0])
    def _() -> None:
        unit = _Unit(head, *(inputs.units[index, field] for field in range(8)))
        is_small = unit.queries * call.shape.group <= SMALL_ROWS
        if call.config.tile_rows == SMALL_ROWS or call.shape.num_tokens == 1:
            _attend(unit, inputs, outputs, call, SMALL_ROWS)
            return

        @pl.when(is_small)
        def _() -> None:
            _attend(unit, inputs, outputs, call, SMALL_ROWS)

        @pl.when(~is_small)
        def _() -> None:
            _attend(unit, inputs, outputs, call, call.config.tile_rows)


def _attend(unit: _Unit, inputs: _Inputs, outputs: _Outputs, call: _Call, size: int) -> None:
    """One unit in a tile of ``size`` rows, each a query's head; query by query."""
    shape, options = call.shape, call.options
    row = jnp.arange(size, dtype=jnp.int32)
    query = row // shape.group
    head = unit.head * shape.group + (row - query * shape.group)
    is_row = query < unit.queries
    dim = jnp.arange(call.padded_dim, dtype=jnp.int32)
    is_place = is_row[:, None] & (dim < shape.head_dim)[None]
    place = ((unit.token + query)[:, None], head[:, None], dim[None])
    q = plt.load(inputs.q.at[place], mask=is_place, other=0)

    scale = options.scale
    if inputs.k_scales is not None:
        scale = scale * inputs.k_scales[unit.head]
    last_seen = unit.position + query

    def turn(block: Array, past: _Softmax) -> _Softmax:
        k, v, key = _keys(block, unit, inputs, call, q.dtype)
        scores = plt.dot(q, k, trans_b=True)
        if options.softcap is None:
            scores = scores * (scale * LOG2_E)
        else:
            scores = _tanh(scores * (scale / options.softcap)) * (options.softcap * LOG2_E)
        is_seen = key[None] <= last_seen[:, None]
        if options.window is not None:
            is_seen = is_seen & (key[None] > last_seen[:, None] - options.window)
        scores = jnp.where(is_seen, scores, EMPTY)
        top = jnp.maximum(past.top, scores.max(1))
        weights = jnp.exp2(scores - top[:, None])
        fading = jnp.exp2(past.top - top)
        return _Softmax(
            top=top,
            total=past.total * fading + weights.sum(1),
            seen=past.seen * fading[:, None] + plt.dot(weights.astype(v.dtype), v),
        )

    result = lax.fori_loop(
        unit.first_block,
        unit.first_block + unit.num_blocks,
        turn,
        _start(unit, inputs, head, is_row, call),
    )
    seen = result.seen / jnp.maximum(result.total, 1e-30)[:, None]
    if inputs.v_scales is not None:
        seen = seen * inputs.v_scales[unit.head]
    if outputs.part_out is None:
        plt.store(outputs.out.at[place], seen.astype(q.dtype), mask=is_place)
        return

    @pl.when(unit.slot == DIRECT)
    def _() -> None:
        plt.store(outputs.out.at[place], seen.astype(q.dtype), mask=is_place)

    @pl.when(unit.slot != DIRECT)
    def _() -> None:
        slot = unit.slot + query
        lse = jnp.where(result.total > 0, result.top + jnp.log2(result.total), EMPTY)
        plt.store(outputs.part_lse.at[slot, head], lse, mask=is_row)
        part_place = (slot[:, None], head[:, None], dim[None])
        plt.store(outputs.part_out.at[part_place], seen, mask=is_place)


def _start(
    unit: _Unit, inputs: _Inputs, head: Int[Array, "M"], is_row: Bool[Array, "M"], call: _Call
) -> _Softmax:
    """The softmax before the first key: nothing, or the sink in the split that has it."""
    lowest = jnp.full(head.shape, _LOWEST, jnp.float32)
    total = jnp.zeros(head.shape, jnp.float32)
    seen = jnp.zeros((head.shape[0], call.padded_dim), jnp.float32)
    if inputs.sinks is None:
        return _Softmax(lowest, total, seen)
    has_sink = is_row & (unit.is_first == 1)
    sink = plt.load(inputs.sinks.at[head], mask=has_sink, other=0)
    return _Softmax(jnp.where(has_sink, sink * LOG2_E, lowest), has_sink.astype(jnp.float32), seen)


def _keys(
    block: Array, unit: _Unit, inputs: _Inputs, call: _Call, dtype: jnp.dtype
) -> tuple[Float[Array, "B D"], Float[Array, "B D"], Int[Array, "B"]]:
    """Keys, values and positions of a block; values are 0 where no query of the unit looks.

    Hidden scores are selected away, but a hidden value is multiplied by 0, which NaN survives.
    """
    shape, size = call.shape, call.config.block_keys
    local = jnp.arange(size, dtype=jnp.int32)
    key = block * size + local
    if shape.page_size >= size:
        blocks = shape.page_size // size
        page = _page(inputs, unit, block // blocks, call)
        pages, slot = jnp.broadcast_to(page, (size, 1)), block % blocks * size + local
    else:
        pages_of_block = size // shape.page_size
        index = block * pages_of_block + local // shape.page_size
        pages, slot = _page(inputs, unit, index, call)[:, None], local % shape.page_size
    dim = jnp.arange(call.padded_dim, dtype=jnp.int32)
    place = (pages, unit.head, slot[:, None], dim[None])
    is_value = (key < unit.position + unit.queries)[:, None]
    if call.options.window is not None:
        is_value = is_value & (key > unit.position - call.options.window)[:, None]
    if call.padded_dim == shape.head_dim:
        k = plt.load(inputs.k_pages.at[place])
        is_value = jnp.broadcast_to(is_value, (size, call.padded_dim))
    else:
        is_dim = jnp.broadcast_to((dim < shape.head_dim)[None], (size, call.padded_dim))
        k = plt.load(inputs.k_pages.at[place], mask=is_dim, other=0)
        is_value = is_value & is_dim
    v = plt.load(inputs.v_pages.at[place], mask=is_value, other=0)
    return widened(k, shape.kv_dtype, dtype), widened(v, shape.kv_dtype, dtype), key


def _page(inputs: _Inputs, unit: _Unit, index: Array, call: _Call) -> Array:
    """Page ids; the null page for what a last block has beyond the table."""
    entry = inputs.block_tables.at[unit.row, index]
    if call.shape.pages_per_row * call.shape.page_size % call.config.block_keys == 0:
        return plt.load(entry)
    return plt.load(entry, mask=index < call.shape.pages_per_row, other=0)


def _as_bits(pages: Array) -> Array:
    """8-bit floats as integers, since Pallas-Triton loads no float8 with a mask; no copy."""
    return lax.bitcast_convert_type(pages, jnp.uint8) if pages.dtype.itemsize == 1 else pages


def widened(values: Array, kv_dtype: str, dtype: jnp.dtype) -> Array:
    """Bits of ``kv_dtype``, a float8, as ``dtype``, exactly; values of other dtypes as they are.

    By way of float16's bits, since Ampere has no instruction for it.
    """
    if values.dtype != jnp.uint8:
        return values
    bits = values.astype(jnp.uint16)
    if kv_dtype == "float8_e5m2":
        return lax.bitcast_convert_type(bits << 8, jnp.float16).astype(dtype)
    rest = bits & 0x7F
    # Exponent and mantissa move as they are, so float16 reads them 2^8 too small.
    half = lax.bitcast_convert_type((bits & 0x80) << 8 | rest << 7, jnp.float16) * 256
    return jnp.where(rest == 0x7F, jnp.nan, half).astype(dtype)


def _tanh(x: Array) -> Array:
    """tanh by exp2, to float32's absolute precision; overflow ends in -1 and 1."""
    return 2 / (1 + jnp.exp2(x * (-2 * LOG2_E))) - 1


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
