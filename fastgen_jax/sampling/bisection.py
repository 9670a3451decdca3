"""Exact thresholds over weights by bisection on the bits of the floats."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Weights lie in [0, 1]; as int32, the bits of such floats are in the order of the floats.
KEY_ABOVE_ALL = 0x40000000  # the bits of 2.0
# Sums of float32 weights are trusted to this part of the total.
SUM_ERROR = 1e-5


def weight_keys(weights: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """int32 keys in the order of the weights; free, the bits are read as integers."""
    return lax.bitcast_convert_type(weights, jnp.int32)


def mass_from(weights: Float[Array, "R N"], key: Int[Array, " R"]) -> Float[Array, " R"]:
    """The sum of each row's weights whose keys are at least ``key``."""
    return jnp.sum(jnp.where(weight_keys(weights) >= key[:, None], weights, 0), axis=-1)


def largest_key_with_count(
    weights: Float[Array, "R N"],
    count: Int[Array, " R"],
    start: Int[Array, " R"],
    is_wanted: Bool[Array, " R"],
) -> Int[Array, " R"]:
    """A key that exactly the ``count`` largest weights and their ties reach.

    ``start`` where fewer reach a larger key, and where nothing is wanted.
    """
    keys = weight_keys(weights)

    def narrow(lo: Int[Array, " R"], hi: Int[Array, " R"]) -> tuple[Array, Array]:
        middle = lo + (hi - lo) // 2
        found = jnp.sum(keys >= middle[:, None], axis=-1, dtype=jnp.int32)
        lo = jnp.where(found >= count, middle, lo)
        hi = jnp.where(found >= count, hi, middle)
        return lo, jnp.where(found == count, lo + 1, hi)

    return _bisect(narrow, start, jnp.where(is_wanted, KEY_ABOVE_ALL, start + 1))


def largest_key_with_mass(
    weights: Float[Array, "R N"],
    goal: Float[Array, " R"],
    start: Int[Array, " R"],
    is_wanted: Bool[Array, " R"],
) -> Int[Array, " R"]:
    """A key that the largest weights reach whose sum first reaches ``goal``, and their ties.

    ``start`` where the sum is less from every larger key on, and where nothing is wanted.
    """
    whole = mass_from(weights, start)

    def narrow(
        lo: Int[Array, " R"],
        hi: Int[Array, " R"],
        above: Float[Array, " R"],
        upto: Float[Array, " R"],
    ) -> tuple[Array, ...]:
        middle = lo + (hi - lo) // 2
        mass = mass_from(weights, middle)
        reached = mass >= goal
        lo, upto = jnp.where(reached, middle, lo), jnp.where(reached, mass, upto)
        hi, above = jnp.where(reached, hi, middle), jnp.where(reached, above, mass)
        # Every weight in [lo, hi) is at least that of lo, so less than twice its mass there
        # means a single token: the set is settled, whatever the exact key. A row still at its
        # start goes on: nothing has shown yet that a larger key reaches the goal.
        lightest = lax.bitcast_convert_type(lo, jnp.float32)
        is_single = (upto - above < 1.5 * lightest) & (lightest > SUM_ERROR * whole)
        return lo, jnp.where(is_single & (lo > start), lo + 1, hi), above, upto

    hi = jnp.where(is_wanted, KEY_ABOVE_ALL, start + 1)
    return _bisect(narrow, start, hi, jnp.zeros_like(whole), whole)


def _bisect(
    narrow: Callable[..., tuple[Array, ...]],
    lo: Int[Array, " R"],
    hi: Int[Array, " R"],
    *carried: Array,
) -> Int[Array, " R"]:
    """``lo`` of every row, narrowed until no row has a key between its lo and its hi."""

    def is_open(carry: tuple[Array, ...]) -> Bool[Array, ""]:
        return jnp.any(carry[1] - carry[0] > 1)

    def turn(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        is_settled = carry[1] - carry[0] <= 1
        moved = narrow(*carry)
        return tuple(jnp.where(is_settled, a, b) for a, b in zip(carry, moved, strict=True))

    return lax.while_loop(is_open, turn, (lo, hi, *carried))[0]
