"""The Hopper kernel's loading side: bulk tensor copies into the ring of stages."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.ragged_paged_attention.config import TILE_ROWS
from pallas_kernels.ragged_paged_attention.sm90_kernel import Kernel, Memory, Unit


def load_units(kernel: Kernel, memory: Memory, stream: int) -> None:
    """Fetch what the stream's computing warpgroup will want, as soon as there is room."""
    stages = jnp.int32(kernel.config.stages)

    def load_block(unit: Unit, turns: Array, i: Array) -> None:
        turn = turns + i
        place = lax.rem(turn, stages)
        pages = _page_ids(kernel, memory, unit, unit.first_block + i)
        for name in ("k", "v"):
            if kernel.variant.fault != "early refill":

                @pl.when(turn >= stages)
                def _wait(name: str = name) -> None:
                    plgpu.barrier_wait(memory[f"{name}_free"].at[place])

            for page, source, target in pages:
                plgpu.copy_gmem_to_smem(
                    memory[f"{name}_pages"].at[page, unit.head, source],
                    memory[f"{name}_s"].at[place, target],
                    memory[f"{name}_full"].at[place],
                )

    def run(unit: Unit, turns: Array, index: Array) -> None:
        # The first block doesn't wait for the room of the queries.
        @pl.when(unit.num_blocks > 0)
        def _first() -> None:
            load_block(unit, turns, jnp.int32(0))

        @pl.when(index > 0)
        def _wait() -> None:
            plgpu.barrier_wait(memory["q_free"])

        plgpu.copy_gmem_to_smem(
            memory["q"].at[unit.head, pl.ds(unit.token * kernel.shape.group, TILE_ROWS)],
            memory["q_s"][0],
            memory["q_full"],
        )
        lax.fori_loop(1, unit.num_blocks, lambda i, _: load_block(unit, turns, i), None)

    kernel.each_unit(memory, stream, run)


def _page_ids(
    kernel: Kernel, memory: Memory, unit: Unit, block: Array
) -> list[tuple[Array, Any, Any]]:
    """Of a block of keys: each page, what to take of it and where that goes."""
    keys, page_size = kernel.config.block_keys, kernel.shape.page_size
    last = jnp.int32(kernel.shape.pages_per_row - 1)
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
