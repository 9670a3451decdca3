"""What the Hopper kernel's two sides share: memory, barriers and the way through the units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.ragged_paged_attention.config import TILE_ROWS, HopperConfig
from pallas_kernels.ragged_paged_attention.heuristics import output_width
from pallas_kernels.ragged_paged_attention.options import AttentionOptions
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.units import num_slots

Memory = dict[str, Any]  # refs by name: the operands, and one stream's shared memory and barriers

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One way to build the kernel."""

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

    @property
    def operands(self) -> list[str]:
        """Names of the kernel's operands and results, in order."""
        names = ["units", "num_units", "tables", "q", "k_pages", "v_pages"]
        if self.has_sinks:
            names.append("sinks")
        if self.has_scales:
            names += ["k_scales", "v_scales"]
        return names + (["out", "partial", "sums"] if self.can_split else ["out"])

    def memory_of(self, stream: int, refs: tuple[Any, ...], scratch: Memory) -> Memory:
        """What one stream works with."""
        own = {name: scratch[f"{name}{stream}"] for name in self.stream_scratch()}
        return dict(zip(self.operands, refs, strict=True)) | own

    def each_unit(
        self, memory: Memory, stream: int, run: Callable[[Unit, Array, Array], None]
    ) -> None:
        """Call ``run(unit, turns so far, units so far)`` for every unit that is the stream's."""
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
            fields = (memory["units"][place, field] for field in range(_UNIT_FIELDS))
            row, token, queries, position, first_block, num_blocks, slot, is_first = fields
            unit = Unit(
                row=row,
                token=token,
                queries=queries,
                position=position,
                first_block=first_block,
                num_blocks=num_blocks,
                slot=slot,
                is_first=is_first,
                head=head,
            )
            run(unit, turns, index)
            return turns + unit.num_blocks

        lax.fori_loop(0, jnp.maximum(count, 0), body, jnp.int32(0))


def pages_per_block(shape: AttentionShape, config: HopperConfig) -> int:
    """Copies that fill one stage of keys."""
    return max(1, config.block_keys // shape.page_size)


def _swizzled(head_dim: int, itemsize: int) -> tuple[Any, ...]:
    """Layout of a tile in shared memory: the widest swizzle that divides its rows."""
    row = head_dim * itemsize
    swizzle = next(width for width in (128, 64, 32) if row % width == 0)
    # Jax's own types say that these are abstract, which they aren't.
    tiling = plgpu.TilingTransform((8, swizzle // itemsize))  # pyright: ignore[reportAbstractUsage]
    return tiling, plgpu.SwizzleTransform(swizzle)  # pyright: ignore[reportAbstractUsage]
