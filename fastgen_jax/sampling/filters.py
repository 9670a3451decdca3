"""top-k and top-p as one threshold per row, found without sorting the vocabulary."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fastgen_jax.sampling.bisection import find_thresholds, float_of, key_of, open_bracket
from fastgen_jax.sampling.blocks import take_blocks, to_blocks
from fastgen_jax.sampling.row_settings import RowSettings

# The likeliest tokens lie in few narrow blocks; the search looks there first.
CANDIDATE_BLOCKS = 64
CANDIDATE_WIDTH = 32


def keep_from(
    weights: Float[Array, "R W"], total: Float[Array, " R"], settings: RowSettings
) -> Float[Array, " R"]:
    """The lowest weight that top-k and top-p keep; everything from it on is kept.

    Tokens exactly as likely as the last one kept are kept too. top-k looks at what min_p kept,
    top-p at what both kept.

    Args:
        weights: probabilities divided by the row's largest one, zero where min_p drops them.
        total: their sum.
        settings: rows without top-k and top-p get 0.
    """
    is_open = settings.is_sampled & (settings.has_top_k | settings.has_top_p)
    nothing = jnp.full_like(settings.row, -1)  # below the key of every weight
    threshold = nothing
    if weights.shape[1] > 2 * CANDIDATE_BLOCKS * CANDIDATE_WIDTH:
        candidates, bound = _candidates(weights)
        bracket = open_bracket(settings, total, bound, is_open)
        threshold = find_thresholds(candidates, bracket, settings, bound)
        is_open &= threshold <= bound
    bracket = open_bracket(settings, total, nothing, is_open)
    found = find_thresholds(weights, bracket, settings, nothing)
    return float_of(jnp.maximum(jnp.where(is_open, found, threshold), 0))


def _candidates(weights: Float[Array, "R W"]) -> tuple[Float[Array, "R N"], Int[Array, " R"]]:
    """The likeliest blocks' weights, and a key that no weight outside of them is above."""
    maxima, blocks = lax.top_k(jnp.max(to_blocks(weights, CANDIDATE_WIDTH), -1), CANDIDATE_BLOCKS)
    candidates = take_blocks(weights, blocks, CANDIDATE_WIDTH)
    # Behind a barrier: XLA makes a full sort of a top_k that is sliced.
    return candidates, key_of(lax.optimization_barrier(maxima)[:, -1])
