"""Rows taken a group at a time, so that what is as wide as the vocabulary exists for one group."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fastgen_jax.sampling.row_settings import RowSettings

Rows = tuple[Float[Array, "R W"], Float[Array, " R"], RowSettings]


def usable_groups(num_rows: int, num_groups: int) -> int:
    """``num_groups`` where they are of equal size and more than one row, else 1."""
    is_even = num_rows % num_groups == 0 and num_rows > num_groups
    return num_groups if is_even else 1


def change_groups(
    change: Callable[[Float[Array, "G W"], RowSettings], Float[Array, "G W"]],
    values: Float[Array, "R W"],
    settings: RowSettings,
    num_groups: int,
) -> Float[Array, "R W"]:
    """``change(values, settings)``, group by group and in place."""
    if num_groups == 1:
        return change(values, settings)
    size = values.shape[0] // num_groups

    def turn(index: Array, values: Array) -> Array:
        rows = _rows_of(index, size)
        changed = change(_take(values, rows), _take_settings(settings, rows))
        return _put(values, rows, changed)

    return lax.fori_loop(0, num_groups, turn, values)


def map_groups(
    function: Callable[[Float[Array, "G W"], Float[Array, " G"], RowSettings], Int[Array, " G"]],
    values: Float[Array, "R W"],
    peak: Float[Array, " R"],
    settings: RowSettings,
    num_groups: int,
) -> Int[Array, " R"]:
    """``function(values, peak, settings)``, group by group."""
    if num_groups == 1:
        return function(values, peak, settings)
    size = values.shape[0] // num_groups

    def turn(index: Array, found: Array) -> Array:
        rows = _rows_of(index, size)
        part = function(_take(values, rows), _take(peak, rows), _take_settings(settings, rows))
        return _put(found, rows, part)

    return lax.fori_loop(0, num_groups, turn, jnp.zeros(values.shape[0], jnp.int32))


# By a vector of rows and not as a slice: XLA takes slices out of loops in a way that keeps them,
# and the conditional around, out of its CUDA graph.
def _rows_of(index: Array, size: int) -> Int[Array, " G"]:
    return index * size + jnp.arange(size, dtype=jnp.int32)


def _take(array: Array, rows: Int[Array, " G"]) -> Array:
    return array.at[rows].get(
        mode="promise_in_bounds",
        unique_indices=True,
        indices_are_sorted=True,
        wrap_negative_indices=False,
    )


def _put(array: Array, rows: Int[Array, " G"], values: Array) -> Array:
    return array.at[rows].set(
        values,
        mode="promise_in_bounds",
        unique_indices=True,
        indices_are_sorted=True,
        wrap_negative_indices=False,
    )


def _take_settings(settings: RowSettings, rows: Int[Array, " G"]) -> RowSettings:
    return jax.tree.map(lambda array: _take(array, rows), settings)
