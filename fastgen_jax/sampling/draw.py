"""One token per row, drawn from its weights with the row's own random stream."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fastgen_jax.sampling.bisection import weight_keys
from fastgen_jax.sampling.blocks import take_blocks, to_blocks
from fastgen_jax.sampling.filters import keep_from
from fastgen_jax.sampling.row_settings import RowSettings
from fastgen_jax.sampling.threefry import uniform_pair


def weigh_tokens(
    logits: Float[Array, "R V"], peak: Float[Array, " R"], settings: RowSettings
) -> Float[Array, "R V"]:
    """Each token's probability at the row's temperature, divided by that of the likeliest."""
    return jnp.exp((logits - peak[:, None]) / settings.temperature[:, None])


def draw_tokens(weights: Float[Array, "R V"], settings: RowSettings) -> Int[Array, " R"]:
    """A token per row after min_p, top-k and top-p; meaningless in rows that aren't sampled.

    First a block of tokens is drawn by its weight, then a token inside it, each with its own
    uniform number: two short sums in place of one as wide as the vocabulary.
    """
    threshold = lax.cond(
        jnp.any(settings.has_filter),
        lambda: keep_from(weights, settings),
        lambda: jnp.zeros_like(settings.top_k),
    )
    kept = jnp.where(weight_keys(weights) >= threshold[:, None], weights, 0)
    sums = jnp.sum(to_blocks(kept, 0), axis=-1)
    words = uniform_pair(
        (settings.seed[:, 0], settings.seed[:, 1]), settings.length.astype(jnp.uint32)
    )
    block = invert_cdf(sums, words[0])
    inside, ids = take_blocks(weights, block[:, None], 0)
    inside = jnp.where(weight_keys(inside) >= threshold[:, None], inside, 0)
    column = invert_cdf(inside, words[1])
    return jnp.take_along_axis(ids, column[:, None], axis=1)[:, 0]


def invert_cdf(weights: Float[Array, "R N"], word: Array) -> Int[Array, " R"]:
    """The first index whose cumulative weight exceeds ``word / 2**24`` of the total.

    Never an index of weight zero while a positive one exists, however the sums round.

    Args:
        weights: not negative.
        word: uint32 [R], below 2**24.
    """
    total = jnp.cumsum(weights, axis=-1)
    target = word.astype(jnp.float32) * 2.0**-24 * total[:, -1]
    is_positive = weights > 0
    is_past = is_positive & (total > target[:, None])
    last = weights.shape[1] - 1 - jnp.argmax(is_positive[:, ::-1], axis=-1)
    index = jnp.where(jnp.any(is_past, axis=-1), jnp.argmax(is_past, axis=-1), last)
    return index.astype(jnp.int32)
