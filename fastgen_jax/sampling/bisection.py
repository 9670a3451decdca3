"""Exact thresholds over weights by bisection on the bits of the floats."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.row_settings import RowSettings

# Weights lie in [0, 1]; as int32 keys, the bits of such floats are in the order of the floats.
KEY_ABOVE_ALL = 0x40000000  # the bits of 2.0
# Sums of float32 weights are trusted to this part of the total.
SUM_ERROR = 1e-5
UNKNOWN = -1.0  # a goal that the next turn finds out


class Bracket(NamedTuple):
    """Where each row's threshold may still lie: ``lo`` is good, ``hi`` is known to be too high.

    A row first looks for the key that its ``top_k`` heaviest tokens reach, then, from there, for
    the one that holds the part ``top_p`` of their mass.

    Attributes:
        lo: key; the row is settled where it is next to ``hi``.
        hi: key.
        goal: the count or mass that the tokens from the threshold on must reach.
        above: mass from ``hi`` on.
        upto: mass from ``lo`` on; inf where it wasn't summed.
        by_mass: 1 in the search for top-p, 0 in the one for top-k.
    """

    lo: Int[Array, " R"]
    hi: Int[Array, " R"]
    goal: Float[Array, " R"]
    above: Float[Array, " R"]
    upto: Float[Array, " R"]
    by_mass: Int[Array, " R"]


def float_of(key: Int[Array, " R"]) -> Float[Array, " R"]:
    """The weight that has the key."""
    return lax.bitcast_convert_type(key, jnp.float32)


def key_of(weight: Float[Array, " R"]) -> Int[Array, " R"]:
    """int32 key in the order of the weights."""
    return lax.bitcast_convert_type(weight, jnp.int32)


def open_bracket(
    settings: RowSettings,
    total: Float[Array, " R"],
    bound: Int[Array, " R"],
    is_open: Bool[Array, " R"],
) -> Bracket:
    """The bracket of a search that hasn't begun.

    Args:
        settings: what the rows ask for.
        total: sum of all the row's weights.
        bound: the threshold is above this key, or out of the search's reach.
        is_open: other rows are settled at key 0.
    """
    # min_p has already taken the weights below it away.
    start = jnp.maximum(bound, key_of(settings.min_p))
    zeros = jnp.zeros_like(total)
    return Bracket(
        lo=jnp.where(is_open, start, 0),
        hi=jnp.where(is_open, KEY_ABOVE_ALL, 1),
        goal=jnp.where(
            settings.has_top_k, settings.top_k.astype(jnp.float32), settings.top_p * total
        ),
        above=zeros,
        upto=zeros + jnp.inf,
        by_mass=(~settings.has_top_k).astype(jnp.int32),
    )


def find_thresholds(
    weights: Float[Array, "R N"],
    bracket: Bracket,
    settings: RowSettings,
    bound: Int[Array, " R"],
) -> Int[Array, " R"]:
    """The key of each row's threshold; tied with the last token kept, more are kept.

    ``bound``, or one below, where the threshold doesn't lie among the weights above it.
    """

    def is_unsettled(carry: Int[Array, "6 R"]) -> Bool[Array, ""]:
        return jnp.any(carry[1] - carry[0] > 1)

    def turn(carry: Int[Array, "6 R"]) -> Int[Array, "6 R"]:
        old = _unpack(carry)
        middle = jnp.where(old.goal < 0, old.lo, (old.lo + old.hi) >> 1)
        # Compared as floats: XLA would compute the keys of all weights ahead of the loop.
        is_reached = weights >= float_of(middle)[:, None]
        amounts = jnp.where(old.by_mass[:, None] == 1, weights, 1)
        found = jnp.sum(jnp.where(is_reached, amounts, 0), axis=-1)
        new = _begin_top_p(_narrow(old, middle, found, settings), settings, bound)
        return jnp.where((old.hi - old.lo > 1)[None], _pack(new), carry)

    return lax.while_loop(is_unsettled, turn, _pack(bracket))[0]


def _narrow(
    old: Bracket, middle: Int[Array, " R"], found: Float[Array, " R"], settings: RowSettings
) -> Bracket:
    """The bracket after ``found``, of weights from ``middle`` on, was compared with the goal."""
    is_by_mass = old.by_mass == 1
    is_reached = found >= old.goal
    lo, upto = jnp.where(is_reached, middle, old.lo), jnp.where(is_reached, found, old.upto)
    hi, above = jnp.where(is_reached, old.hi, middle), jnp.where(is_reached, old.above, found)
    goal = jnp.where(old.goal < 0, settings.top_p * found, old.goal)
    # Every weight in [lo, hi) is at least that of lo, so less than twice its mass there means a
    # single token: the set is settled, whatever the exact key.
    lightest = float_of(lo)
    is_trusted = lightest * settings.top_p > SUM_ERROR * goal
    is_single = is_by_mass & (upto - above < 1.5 * lightest) & is_trusted
    is_settled = is_single | (~is_by_mass & (found == old.goal))
    return Bracket(lo, jnp.where(is_settled, lo + 1, hi), goal, above, upto, old.by_mass)


def _begin_top_p(bracket: Bracket, settings: RowSettings, bound: Int[Array, " R"]) -> Bracket:
    """The bracket with the search for top-p opened where the one for top-k has just ended."""
    is_found = (bracket.hi - bracket.lo <= 1) & (bracket.lo > bound)
    begins = is_found & (bracket.by_mass == 0) & settings.has_top_p
    return bracket._replace(
        hi=jnp.where(begins, KEY_ABOVE_ALL, bracket.hi),
        goal=jnp.where(begins, UNKNOWN, bracket.goal),
        above=jnp.where(begins, 0, bracket.above),
        by_mass=jnp.where(begins, 1, bracket.by_mass),
    )


def _pack(bracket: Bracket) -> Int[Array, "6 R"]:
    """One array for the whole bracket: each array that a loop carries costs kernels."""
    lo, hi, goal, above, upto, by_mass = bracket
    return jnp.stack([lo, hi, key_of(goal), key_of(above), key_of(upto), by_mass])


def _unpack(words: Int[Array, "6 R"]) -> Bracket:
    lo, hi, goal, above, upto, by_mass = (
        lax.index_in_dim(words, i, keepdims=False) for i in range(6)
    )
    return Bracket(lo, hi, float_of(goal), float_of(above), float_of(upto), by_mass)
