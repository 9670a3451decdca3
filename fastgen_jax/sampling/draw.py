"""One token per row, drawn from its weights with the row's own random stream."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from fastgen_jax.sampling.blocks import BLOCK, largest, pad_to_blocks, take_blocks, to_blocks
from fastgen_jax.sampling.filters import keep_from
from fastgen_jax.sampling.row_settings import RowSettings
from fastgen_jax.sampling.threefry import uniform_pair


def weigh_tokens(
    logits: Float[Array, "R W"], peak: Float[Array, " R"], settings: RowSettings
) -> Float[Array, "R W"]:
    """Each token's probability at the row's temperature, divided by that of the likeliest.

    Zero where that is less than min_p.
    """
    weights = jnp.exp((logits - peak[:, None]) / settings.temperature[:, None])
    return jnp.where(weights >= settings.min_p[:, None], weights, 0)


def draw_tokens(weights: Float[Array, "R W"], settings: RowSettings) -> Int[Array, " R"]:
    """A token per row after top-k and top-p; meaningless in rows that aren't sampled.

    First a block of tokens is drawn by its weight, then a token inside it, each with its own
    uniform number: two short sums in place of one as wide as the vocabulary.
    """
    sums = jnp.sum(to_blocks(weights), axis=-1)

    def filtered() -> tuple[Float[Array, "R C"], Float[Array, " R"]]:
        threshold = keep_from(weights, jnp.sum(sums, axis=-1), settings)
        kept = jnp.where(weights >= threshold[:, None], weights, 0)
        return jnp.sum(to_blocks(kept), axis=-1), threshold

    sums, threshold = lax.cond(
        jnp.any(settings.is_sampled & (settings.has_top_k | settings.has_top_p)),
        filtered,
        lambda: (sums, jnp.zeros(sums.shape[0], sums.dtype)),
    )
    words = uniform_pair(settings.seed, settings.length.astype(jnp.uint32))
    block = invert_cdf(sums, words[0])
    inside = take_blocks(weights, block[:, None])
    inside = jnp.where(inside >= threshold[:, None], inside, 0)
    return block * BLOCK + invert_cdf(inside, words[1])


def invert_cdf(weights: Float[Array, "R N"], word: UInt[Array, " R"]) -> Int[Array, " R"]:
    """The first index whose cumulative weight exceeds ``word / 2**24`` of the total.

    Never an index of weight zero while a positive one exists, however the sums round.

    Args:
        weights: not negative.
        word: below 2**24.
    """
    total = running_sums(weights)
    target = word.astype(jnp.float32) * 2.0**-24 * total[:, -1]
    # The best score is that of the first index past the target, else of the last positive one.
    index = lax.broadcasted_iota(jnp.float32, weights.shape, 1)
    score = jnp.where(total > target[:, None], jnp.inf, index)
    return largest(jnp.where(weights > 0, score, -1))[1]


def running_sums(weights: Float[Array, "R N"]) -> Float[Array, "R N"]:
    """Cumulative sums of each row; products with triangles, which compile far faster."""
    rows, columns = weights.shape
    groups = -(-columns // BLOCK)
    sums = _dot(to_blocks(pad_to_blocks(weights, 0)), np.triu(np.ones((BLOCK, BLOCK), np.float32)))
    if groups > 1:
        before = _dot(sums[:, :, -1], np.triu(np.ones((groups, groups), np.float32), 1))
        sums += before[:, :, None]
    return sums.reshape(rows, -1)[:, :columns]


def _dot(left: Float[Array, "*rows N"], right: Float[np.ndarray, "N M"]) -> Float[Array, "*rows M"]:
    return jnp.dot(left, right, precision=lax.Precision.HIGHEST)
