"""Rows of logits seen as blocks of neighbouring tokens, which keeps wide reductions vectorised."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 128  # tokens of one block, where nothing else is said


def to_blocks(
    values: Float[Array, "R V"], fill: float, width: int = BLOCK
) -> Float[Array, "R C D"]:
    """The rows as C blocks of D = ``width`` tokens, the last one filled up with ``fill``."""
    rows, columns = values.shape
    missing = -columns % width
    if missing:
        values = jnp.pad(values, ((0, 0), (0, missing)), constant_values=fill)
    return values.reshape(rows, -1, width)


def take_blocks(
    values: Float[Array, "R V"], blocks: Int[Array, "R N"], fill: float, width: int = BLOCK
) -> tuple[Float[Array, "R ND"], Int[Array, "R ND"]]:
    """The values and token ids of N chosen blocks per row, N * D columns.

    Columns beyond the vocabulary hold ``fill``.
    """
    rows = values.shape[0]
    ids = blocks[:, :, None] * width + jnp.arange(width, dtype=jnp.int32)[None, None]
    ids = ids.reshape(rows, -1)
    taken = jnp.take_along_axis(values, ids, axis=1, mode="fill", fill_value=fill)
    return taken, ids


def first_argmax(values: Float[Array, "R V"]) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """The lowest index of each row's largest value, and that value; NaN wins over everything.

    One vectorised pass for the blocks' maxima, then a look into one block: XLA's own argmax is
    a scalar loop on the CPU, about seven times slower.
    """
    maxima = jnp.max(to_blocks(values, -jnp.inf), axis=-1)
    block = jnp.argmax(maxima, axis=-1).astype(jnp.int32)
    candidates, ids = take_blocks(values, block[:, None], -jnp.inf)
    column = jnp.argmax(candidates, axis=-1)[:, None]
    index = jnp.take_along_axis(ids, column, axis=1)[:, 0]
    return index, jnp.take_along_axis(candidates, column, axis=1)[:, 0]
