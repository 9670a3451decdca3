"""Rows of logits seen as blocks of neighbouring tokens, which keeps wide reductions vectorised."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

BLOCK = 128  # tokens of one block, where nothing else is said


def pad_to_blocks(values: Float[Array, "R V"], fill: float) -> Float[Array, "R W"]:
    """The rows filled up to a multiple of BLOCK columns; the same array where they are one."""
    missing = -values.shape[1] % BLOCK
    if missing == 0:
        return values
    return jnp.pad(values, ((0, 0), (0, missing)), constant_values=fill)


def to_blocks(values: Float[Array, "R V"], width: int = BLOCK) -> Float[Array, "R C D"]:
    """The rows as C blocks of D = ``width`` tokens; V must be a multiple of it."""
    return values.reshape(values.shape[0], -1, width)


def take_blocks(
    values: Float[Array, "R V"], blocks: Int[Array, "R N"], width: int = BLOCK
) -> Float[Array, "R ND"]:
    """The values of N chosen blocks per row, N * D columns; V must be a multiple of D."""
    rows = values.shape[0]
    flat = values.reshape(-1, width)
    return take_flat(flat, flat_index(blocks, flat.shape[0] // rows)).reshape(rows, -1)


def flat_index(columns: Int[Array, "R N"], width: int) -> Int[Array, "R N"]:
    """Places of the rows' columns in the array [R, width] written as one row."""
    # A constant in place of an iota: XLA would compute the iota in a kernel of its own.
    start = np.arange(columns.shape[0], dtype=np.int32)[:, None] * np.int32(width)
    return columns + start


def take_flat(values: Shaped[Array, "N *rest"], index: Int[Array, "*shape"]) -> Array:
    """``values[index]`` for indices known to be in range: no kernels that check or wrap them."""
    return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def largest(values: Float[Array, "R N"]) -> tuple[Float[Array, " R"], Int[Array, " R"]]:
    """Each row's largest value and its lowest index, in one pass; NaN wins over everything."""

    def better(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        is_left = _wins(*left, *right)
        return jnp.where(is_left, left[0], right[0]), jnp.where(is_left, left[1], right[1])

    index = lax.broadcasted_iota(jnp.int32, values.shape, 1)
    start = (np.float32(-np.inf), np.int32(np.iinfo(np.int32).max))
    value, place = lax.reduce((values, index), start, better, (1,))
    return value, place


def _wins(value: Array, index: Array, other: Array, other_index: Array) -> Bool[Array, ""]:
    is_tie = (value == other) & (index < other_index)
    return (value > other) | (value != value) | is_tie


def first_argmax(values: Float[Array, "R V"]) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """The lowest index of each row's largest value, and that value; NaN wins over everything.

    One vectorised pass for the blocks' maxima, then a look into one block: XLA's own argmax is
    a scalar loop on the CPU, about seven times slower.
    """
    peak, block = largest(jnp.max(to_blocks(values), axis=-1))
    _, column = largest(take_blocks(values, block[:, None]))
    return block * BLOCK + column, peak
