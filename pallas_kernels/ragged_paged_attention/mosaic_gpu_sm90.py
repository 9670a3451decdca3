"""The attention for Hopper: Pallas Mosaic GPU with bulk tensor copies and warpgroup products.

A persistent grid: every thread block holds streams, pairs of a loading and a computing warpgroup
that work through the units on their own. The loader fetches a unit's queries and, block by block,
its keys and values into a ring of stages; the computing warpgroup turns each block into scores,
an online softmax and a weighted sum (Dao, FlashAttention-2; the query heads of a group share a
tile, so their keys are read once).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
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
from pallas_kernels.ragged_paged_attention.units import KernelWork, num_slots

MASKED = -1e30  # finite, so that a wholly masked block gives exp2(0) and never NaN
_LOG2_E = math.log2(math.e)
_UNIT_FIELDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """How the kernel is built for a test; the engine takes the defaults.

    Attributes:
        plain_products: plain loads and a dot in place of warpgroup products, whose reads of shared
            memory the interpreter's race detector doesn't see.
        fault: a bug to put in, so that tests can show that it is caught.
    """

    plain_products: bool = False
    fault: str | None = None


FAULTS = ("no wait for keys", "no wait for values", "early refill", "wrong mask", "no tail")


# Compiled on its own so that a step's layers, which differ in their arrays alone, are traced and
# lowered once; XLA puts it in line again.
@functools.partial(
    jax.jit, static_argnames=("shape", "options", "config", "interpret", "variant")
)
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
    interpret: Any = None,
    variant: Variant = Variant(),
) -> Float[Array, "T H D"]:
    """What each query sees of its row's keys; what tokens of no unit hold is undefined."""
    kernel = _Kernel(shape, options, config, variant, sinks is not None, k_scales is not None)
    width = output_width(shape)
    num_heads = shape.num_heads
    if num_heads * width % 128 != 0:
        num_heads += 1  # the merge works on whole pieces of 128 values
    partial = (num_slots(shape, config.splits), num_heads, width)
    operands = [work.units, work.num_units, work.block_tables, _packed_queries(q, shape)]
    operands += [k_pages, v_pages]
    if sinks is not None:
        operands.append(_tile_sinks(sinks, shape))
    if k_scales is not None and v_scales is not None:
        operands += [k_scales, v_scales]
    results = [jax.ShapeDtypeStruct((shape.num_tokens, num_heads, width), q.dtype)]
    if kernel.can_split:
        results += [jax.ShapeDtypeStruct(partial, jnp.float32)] * 2
    out, *partials = plgpu.kernel(
        kernel.body,
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
        interpret=interpret,
    )(*operands)
    if partials:
        flat = (array.reshape(array.shape[0], -1) for array in (out, *partials))
        merged = merge_splits(*flat, work, num_blocks=config.num_blocks, interpret=interpret)
        out = merged.reshape(out.shape)
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
    grouped = sinks.reshape(shape.num_kv_heads, shape.group).astype(jnp.float32) * _LOG2_E
    return jnp.tile(grouped, (1, copies))[:, :TILE_ROWS]


@dataclass(frozen=True, slots=True)
class _Unit:
    """One unit for one kv head, as scalars in registers."""

    row: Array
    token: Array
    queries: Array
    position: Array
    first_block: Array
    num_blocks: Array
    slot: Array
    is_first: Array
    head: Array


@dataclass(frozen=True, slots=True)
class _Kernel:
    shape: AttentionShape
    options: AttentionOptions
    config: HopperConfig
    variant: Variant
    has_sinks: bool
    has_scales: bool

    @property
    def is_cast(self) -> bool:
        """True where pages hold another dtype than the products take."""
        return self.shape.kv_dtype != self.shape.dtype

    @property
    def can_split(self) -> bool:
        return num_slots(self.shape, self.config.splits) > 0

    def scratch(self) -> dict[str, Any]:
        """Shared memory and barriers of every stream; a stream's names end in its number."""
        return {
            f"{name}{stream}": ref
            for stream in range(self.config.streams)
            for name, ref in self.stream_scratch().items()
        }

    def stream_scratch(self) -> dict[str, Any]:
        """Shared memory and barriers of one stream."""
        stages, keys = self.config.stages, self.config.block_keys
        head_dim, width = self.shape.head_dim, output_width(self.shape)
        dtype, kv_dtype = jnp.dtype(self.shape.dtype), jnp.dtype(self.shape.kv_dtype)
        tile = _swizzled(head_dim, dtype.itemsize)
        ring = plgpu.SMEM(
            (stages, keys, head_dim), kv_dtype, transforms=() if self.is_cast else tile
        )
        full = plgpu.Barrier(
            num_arrivals=pages_per_block(self.shape, self.config), num_barriers=stages
        )
        free = plgpu.Barrier(num_barriers=stages)
        result = plgpu.SMEM((TILE_ROWS, width), dtype)
        if self.can_split:
            # A unit's result goes out either whole or as a partial one, so the two share memory.
            result = plgpu.RefUnion(result, plgpu.SMEM((TILE_ROWS, width), jnp.float32))
        scratch = {
            # A copy into a swizzled tile must begin at a multiple of 8 rows, and a token's rows
            # begin anywhere: queries arrive plain and are put in place by the computing side.
            "q_s": plgpu.RefUnion(
                plgpu.SMEM((TILE_ROWS, head_dim), dtype),
                plgpu.SMEM((TILE_ROWS, head_dim), dtype, transforms=tile),
            ),
            "k_s": ring,
            "v_s": ring,
            "q_full": plgpu.Barrier(),
            "q_free": plgpu.Barrier(),
            "k_full": full,
            "v_full": full,
            "k_free": free,
            "v_free": free,
            "result_s": result,
        }
        if self.is_cast:
            scratch["cast_s"] = plgpu.SMEM((keys, head_dim), dtype, transforms=tile)
        return scratch

    def body(self, *refs: Any, **scratch: Any) -> None:
        """The kernel: half of the warpgroups compute, half load."""
        names = ["units", "num_units", "tables", "q", "k_pages", "v_pages"]
        if self.has_sinks:
            names.append("sinks")
        if self.has_scales:
            names += ["k_scales", "v_scales"]
        names += ["out", "partial", "sums"] if self.can_split else ["out"]
        operands = dict(zip(names, refs, strict=True))
        warpgroup = lax.axis_index("warpgroup")
        streams = self.config.streams
        for stream in range(streams):
            own = {name: scratch[f"{name}{stream}"] for name in self.stream_scratch()}
            memory = operands | own

            @pl.when(warpgroup == stream)
            def _compute(stream: int = stream, memory: dict[str, Any] = memory) -> None:
                if streams > 1:
                    plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
                self.compute(memory, stream)

            @pl.when(warpgroup == streams + stream)
            def _load(stream: int = stream, memory: dict[str, Any] = memory) -> None:
                if streams > 1:
                    plgpu.set_max_registers(_LOAD_REGISTERS, action="decrease")
                self.load(memory, stream)

    def each_unit(self, memory: dict[str, Any], stream: int, run: Any) -> None:
        """Call ``run(unit, turns so far)`` for the stream's units; it returns the unit's turns."""
        num_heads = jnp.int32(self.shape.num_kv_heads)
        workers = jnp.int32(self.config.num_blocks * self.config.streams)
        # Neighbouring blocks take neighbouring items: the streams of a block are far apart, so
        # that an uneven end is spread over all blocks.
        worker = stream * self.config.num_blocks + lax.axis_index("block")
        num_items = memory["num_units"][0] * num_heads
        count = lax.div(num_items - worker + (workers - 1), workers)

        def body(index: Array, turns: Array) -> Array:
            item = worker + index * workers
            place, head = lax.div(item, num_heads), lax.rem(item, num_heads)
            fields = [memory["units"][place, field] for field in range(_UNIT_FIELDS)]
            unit = _Unit(*fields, head)
            run(unit, turns, index)
            return turns + unit.num_blocks

        lax.fori_loop(0, jnp.maximum(count, 0), body, jnp.int32(0))

    # --- the loading warpgroup -----------------------------------------------------------------

    def load(self, memory: dict[str, Any], stream: int) -> None:
        """Fetch what the stream's computing warpgroup will want, as soon as there is room."""
        stages = jnp.int32(self.config.stages)

        def load_block(unit: _Unit, turns: Array, i: Array) -> None:
            turn = turns + i
            place = lax.rem(turn, stages)
            pages = self.page_ids(memory, unit, unit.first_block + i)
            for name in ("k", "v"):
                if self.variant.fault != "early refill":

                    @pl.when(turn >= stages)
                    def _wait(name: str = name) -> None:
                        plgpu.barrier_wait(memory[f"{name}_free"].at[place])

                for page, source, target in pages:
                    plgpu.copy_gmem_to_smem(
                        memory[f"{name}_pages"].at[page, unit.head, source],
                        memory[f"{name}_s"].at[place, target],
                        memory[f"{name}_full"].at[place],
                    )

        def run(unit: _Unit, turns: Array, index: Array) -> None:
            # The first block doesn't wait for the room of the queries.
            @pl.when(unit.num_blocks > 0)
            def _first() -> None:
                load_block(unit, turns, jnp.int32(0))

            @pl.when(index > 0)
            def _wait() -> None:
                plgpu.barrier_wait(memory["q_free"])

            plgpu.copy_gmem_to_smem(
                memory["q"].at[unit.head, pl.ds(unit.token * self.shape.group, TILE_ROWS)],
                memory["q_s"][0],
                memory["q_full"],
            )
            lax.fori_loop(
                1, unit.num_blocks, lambda i, _: load_block(unit, turns, i), None
            )

        self.each_unit(memory, stream, run)

    def page_ids(
        self, memory: dict[str, Any], unit: _Unit, block: Array
    ) -> list[tuple[Array, Any, Any]]:
        """Of a block of keys: each page, what to take of it and where that goes."""
        keys, page_size = self.config.block_keys, self.shape.page_size
        last = jnp.int32(self.shape.pages_per_row - 1)
        if page_size >= keys:
            parts = page_size // keys
            page = memory["tables"][unit.row, jnp.minimum(lax.div(block, jnp.int32(parts)), last)]
            start = lax.rem(block, jnp.int32(parts)) * keys
            return [(page, pl.ds(start, keys), slice(None))]
        pages = []
        for i in range(keys // page_size):
            index = jnp.minimum(block * (keys // page_size) + i, last)
            page = memory["tables"][unit.row, index]
            pages.append((page, slice(None), pl.ds(i * page_size, page_size)))
        return pages

    # --- the computing warpgroup ---------------------------------------------------------------

    def compute(self, memory: dict[str, Any], stream: int) -> None:
        """Attend unit after unit."""
        head_dim = self.shape.head_dim

        def run(unit: _Unit, turns: Array, index: Array) -> None:
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
                lambda i, state: self.attend_block(memory, unit, turns, i, state),
                (
                    jnp.zeros((TILE_ROWS, head_dim), jnp.float32),
                    jnp.full((TILE_ROWS,), MASKED, jnp.float32),
                    jnp.zeros((TILE_ROWS,), jnp.float32),
                ),
            )
            if self.variant.plain_products:
                plgpu.commit_smem()
            plgpu.barrier_arrive(memory["q_free"])
            if self.has_sinks:
                # Other splits than the first have no part in the sink.
                sink = memory["sinks"][unit.head] + jnp.where(unit.is_first == 1, 0.0, MASKED)
                raised = jnp.maximum(top, sink)
                fading = jnp.exp2(top - raised)
                total = total * fading + jnp.exp2(sink - raised)
                seen = seen * _rows(fading, head_dim)
                top = raised
            total = jnp.maximum(total, 1e-30)
            share = 1.0 / total
            if self.has_scales:
                share = share * memory["v_scales"][unit.head]
            self.store(memory, unit, seen * _rows(share, head_dim), top + jnp.log2(total))

        self.each_unit(memory, stream, run)

    def attend_block(
        self,
        memory: dict[str, Any],
        unit: _Unit,
        turns: Array,
        i: Array,
        state: tuple[Array, Array, Array],
    ) -> tuple[Array, Array, Array]:
        """The online softmax taken one block of keys further."""
        seen, top, total = state
        stages = jnp.int32(self.config.stages)
        place = lax.rem(turns + i, stages)
        block = unit.first_block + i
        if self.variant.fault != "no wait for keys":
            plgpu.barrier_wait(memory["k_full"].at[place])
        keys = memory["k_s"].at[place]
        if self.is_cast:
            keys = self.cast(memory, keys)
            plgpu.barrier_arrive(memory["k_free"].at[place])
        scores = self.scores(memory["q_s"][1], keys)
        if not self.is_cast:
            self.release(memory["k_free"].at[place])
        scale: Any = self.options.scale
        if self.has_scales:
            scale = memory["k_scales"][unit.head] * scale
        if self.options.softcap is not None:
            softcap = self.options.softcap
            scores = jnp.tanh(scores * (scale / softcap)) * (softcap * _LOG2_E)
        else:
            scores = scores * (scale * _LOG2_E)
        scores = jnp.where(self.is_seen(unit, block), scores, MASKED)
        raised = jnp.maximum(top, scores.max(axis=1))
        fading = jnp.exp2(top - raised)
        weights = jnp.exp2(scores - _rows(raised, self.config.block_keys))
        total = total * fading + weights.sum(axis=1)
        if self.variant.fault != "no wait for values":
            plgpu.barrier_wait(memory["v_full"].at[place])
        values = memory["v_s"].at[place]
        # What a page holds beyond the row's end is somebody's leftover, possibly NaN, and 0 times
        # NaN is NaN.
        valid = unit.position + unit.queries - block * self.config.block_keys
        if self.is_cast:
            values = self.cast(memory, values, valid)
            plgpu.barrier_arrive(memory["v_free"].at[place])
        else:

            @pl.when(valid < self.config.block_keys)
            def _clear_tail() -> None:
                # In pieces, since the weighted sum takes most of the registers.
                for piece in _pieces(self.shape.head_dim):
                    values[:, piece] = self.without_tail(values[:, piece], valid)
                plgpu.commit_smem()

        seen = self.weighted(seen * _rows(fading, self.shape.head_dim), weights, values)
        if not self.is_cast:
            self.release(memory["v_free"].at[place])
        return seen, raised, total

    def scores(self, queries: Any, keys: Any) -> Float[Array, "64 keys"]:
        if self.variant.plain_products:
            wide = queries[...].astype(jnp.float32), keys[...].astype(jnp.float32)
            return jnp.dot(wide[0], wide[1].T)

        def product(accumulator: Any) -> Array:
            plgpu.wgmma(accumulator, queries, keys.transpose((1, 0)))
            return accumulator[...]

        return pl.run_scoped(
            product, plgpu.ACC((TILE_ROWS, self.config.block_keys), jnp.float32)
        )

    def weighted(
        self, seen: Float[Array, "64 D"], weights: Float[Array, "64 keys"], values: Any
    ) -> Float[Array, "64 D"]:
        """``seen`` and the weighted sum of the values."""
        weights = weights.astype(jnp.dtype(self.shape.dtype))
        if self.variant.plain_products:
            wide = weights.astype(jnp.float32), values[...].astype(jnp.float32)
            return seen + jnp.dot(wide[0], wide[1])

        def product(accumulator: Any) -> None:
            plgpu.wgmma(accumulator, weights, values)

        return pl.run_state(product)(plgpu.ACC.init(seen))

    def is_seen(self, unit: _Unit, block: Array) -> Array:
        """Which of a block's keys each tile row sees."""
        size = (TILE_ROWS, self.config.block_keys)
        query = lax.broadcasted_iota(jnp.int32, (TILE_ROWS,), 0)
        if self.shape.group > 1:
            query = lax.div(query, jnp.full((TILE_ROWS,), self.shape.group, jnp.int32))
        last = query + unit.position
        if self.variant.fault == "wrong mask":
            last = last - 1
        # The block's start is added to the keys, for else the whole difference of rows and keys
        # would be the same in every turn, and kept in registers.
        key = lax.broadcasted_iota(jnp.int32, size, 1) + block * self.config.block_keys
        is_seen = key <= _rows(last, self.config.block_keys)
        if self.options.window is not None:
            before = last - self.options.window
            is_seen = is_seen & (key > _rows(before, self.config.block_keys))
        return is_seen

    def cast(self, memory: dict[str, Any], block: Any, valid: Any = None) -> Any:
        """The block in the products' dtype; rows from ``valid`` on are zero."""
        target = memory["cast_s"]
        for piece in _pieces(self.shape.head_dim):
            # Through float32: the hardware converts 8-bit floats to no other dtype than float16.
            values = block[:, piece].astype(jnp.float32).astype(target.dtype)
            target[:, piece] = values if valid is None else self.without_tail(values, valid)
        plgpu.commit_smem()
        return target

    def without_tail(self, values: Array, valid: Array) -> Array:
        if self.variant.fault == "no tail":
            return values
        key = lax.broadcasted_iota(jnp.int32, values.shape, 0)
        return jnp.where(key < valid, values, jnp.zeros_like(values))

    def release(self, barrier: Any) -> None:
        if self.variant.plain_products:
            # Stands for the finished warpgroup product: plain reads must be fenced off from the
            # copy that refills the place.
            plgpu.commit_smem()
        plgpu.barrier_arrive(barrier)

    # --- results -------------------------------------------------------------------------------

    def store(
        self, memory: dict[str, Any], unit: _Unit, seen: Array, sums: Array
    ) -> None:
        """The tile's rows to the output, or to the unit's partial slots."""

        def copy_out(values: Array, source: Any, target: Any, first: Array) -> None:
            for piece in _pieces(self.shape.head_dim):
                plgpu.store(
                    source.at[:, piece],
                    values[:, piece].astype(source.dtype),
                    optimized=self.shape.head_dim % 64 == 0,
                )
            plgpu.commit_smem()
            heads = pl.ds(unit.head * self.shape.group, self.shape.group)

            def copy_query(i: Array, _: None) -> None:
                plgpu.copy_smem_to_gmem(
                    source.at[pl.ds(i * self.shape.group, self.shape.group)],
                    target.at[first + i, heads],
                )

            lax.fori_loop(0, unit.queries, copy_query, None)
            plgpu.wait_smem_to_gmem(0)

        if not self.can_split:
            copy_out(seen, memory["result_s"], memory["out"], unit.token)
            return
        whole, partial = memory["result_s"]

        @pl.when(unit.slot < 0)
        def _direct() -> None:
            copy_out(seen, whole, memory["out"], unit.token)

        @pl.when(unit.slot >= 0)
        def _partial() -> None:
            copy_out(seen, partial, memory["partial"], unit.slot)
            copy_out(_rows(sums, self.shape.head_dim), partial, memory["sums"], unit.slot)


# Of 65536, for two warpgroups of 128 threads each; one stream has as many as threads can have.
_COMPUTE_REGISTERS = 224
_LOAD_REGISTERS = 32


def pages_per_block(shape: AttentionShape, config: HopperConfig) -> int:
    """Copies that fill one stage of keys."""
    return max(1, config.block_keys // shape.page_size)


def _rows(values: Float[Array, "64"], width: int) -> Float[Array, "64 W"]:
    return lax.broadcast_in_dim(values, (values.shape[0], width), [0])


def _pieces(head_dim: int) -> list[slice]:
    """Columns in pieces where the whole would take too many registers."""
    width = 64 if head_dim % 64 == 0 else head_dim
    return [slice(i, i + width) for i in range(0, head_dim, width)]


def _swizzled(head_dim: int, itemsize: int) -> tuple[Any, ...]:
    """Layout of a tile in shared memory: the widest swizzle that divides its rows."""
    row = head_dim * itemsize
    swizzle = next(width for width in (128, 64, 32) if row % width == 0)
    return (
        plgpu.TilingTransform((8, swizzle // itemsize)),
        plgpu.SwizzleTransform(swizzle),
    )
