"""min_p, top-k and top-p as one threshold per row, found without sorting the vocabulary."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.bisection import (
    largest_key_with_count,
    largest_key_with_mass,
    mass_from,
    weight_keys,
)
from fastgen_jax.sampling.blocks import take_blocks, to_blocks
from fastgen_jax.sampling.row_settings import RowSettings

# The likeliest tokens lie in few narrow blocks; the search looks there first.
CANDIDATE_BLOCKS = 64
CANDIDATE_WIDTH = 32


def keep_from(weights: Float[Array, "R V"], settings: RowSettings) -> Int[Array, " R"]:
    """The lowest key that min_p, top-k and top-p keep; everything from it on is kept.

    Tokens exactly as likely as the last one kept are kept too. top-k looks at what min_p kept,
    top-p at what both kept.

    Args:
        weights: probabilities divided by the row's largest one.
        settings: rows without a filter get key 0.
    """
    nothing = jnp.zeros_like(settings.top_k)
    if weights.shape[1] <= 2 * CANDIDATE_BLOCKS * CANDIDATE_WIDTH:
        return _search(weights, weights, nothing, settings)[0]
    maxima = jnp.max(to_blocks(weights, 0, CANDIDATE_WIDTH), axis=-1)
    largest, blocks = lax.top_k(maxima, CANDIDATE_BLOCKS)
    candidates, _ = take_blocks(weights, blocks.astype(jnp.int32), 0, CANDIDATE_WIDTH)
    # A minimum and not the last column: XLA makes a full sort of a top_k that is sliced.
    bound = weight_keys(jnp.min(largest, axis=-1))
    threshold, is_exact = _search(candidates, weights, bound, settings)
    return lax.cond(
        jnp.all(is_exact),
        lambda: threshold,
        lambda: _search(weights, weights, nothing, settings)[0],
    )


def _search(
    candidates: Float[Array, "R N"],
    weights: Float[Array, "R V"],
    bound: Int[Array, " R"],
    settings: RowSettings,
) -> tuple[Int[Array, " R"], Bool[Array, " R"]]:
    """The threshold of each row, and whether it is the one of the whole row.

    Args:
        candidates: weights of the row, all those above ``bound`` among them.
        weights: all weights of the row.
        bound: no weight outside the candidates has a larger key.
        settings: what is asked for.
    """
    use_top_k = settings.has_filter & (settings.top_k < weights.shape[1])
    use_top_p = settings.has_filter & (settings.top_p < 1)
    min_key = weight_keys(jnp.where(settings.has_filter, settings.min_p, 0))
    kth = lax.cond(
        jnp.any(use_top_k),
        lambda: largest_key_with_count(candidates, settings.top_k, bound, use_top_k),
        lambda: bound,
    )
    floor = jnp.where(use_top_k, jnp.maximum(min_key, kth), min_key)

    def search_top_p() -> Int[Array, " R"]:
        # What min_p keeps may reach beyond the candidates; what an exact top-k keeps does not.
        total = jnp.where(use_top_k, mass_from(candidates, floor), mass_from(weights, min_key))
        start = jnp.maximum(floor, bound)
        goal = settings.top_p * total
        return largest_key_with_mass(candidates, goal, start, use_top_p)

    pth = lax.cond(jnp.any(use_top_p), search_top_p, lambda: floor)
    is_exact = (~use_top_k | (kth > bound)) & (~use_top_p | (pth > bound))
    return jnp.where(use_top_p, pth, floor), is_exact
