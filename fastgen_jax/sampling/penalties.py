"""Repetition, frequency and presence penalties from the token histories on the device."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.blocks import flat_index, take_flat
from fastgen_jax.sampling.row_settings import RowSettings

HISTORY_BLOCK = 256  # positions counted per turn of the loop
# A tally is the count in the output, plus multiples of this where the prompt holds the token.
# At most HISTORY_BLOCK of them: the sum stays below 2**31, and counts may reach 4 million.
IN_PROMPT = 1 << 22
LOGIT_BOUND = 1e30  # penalised logits stay finite, and above every held-back token's logit


def apply_penalties(
    logits: Float[Array, "R W"], history: Int[Array, "S M"], settings: RowSettings
) -> Float[Array, "R W"]:
    """The logits after repetition, then frequency and presence penalty.

    Repetition divides positive and multiplies other logits of tokens in prompt or output;
    ``frequency * count + presence * (count > 0)`` is subtracted by the count in the output.
    Source: vLLM's sampler for order and semantics.
    """
    in_prompt, counts = count_tokens(history, settings, logits.shape[1])
    repetition = settings.repetition_penalty[:, None]
    seen = in_prompt | (counts > 0)
    scaled = jnp.where(logits > 0, logits / repetition, logits * repetition)
    subtracted = settings.frequency_penalty[:, None] * counts.astype(jnp.float32)
    subtracted += jnp.where(counts > 0, settings.presence_penalty[:, None], 0)
    penalized = jnp.where(seen, scaled, logits) - subtracted
    bounded = jnp.clip(penalized, -LOGIT_BOUND, LOGIT_BOUND)
    # A model's own -inf and what broke stay; rows without a penalty keep their logits to the bit.
    return jnp.where(settings.has_penalty[:, None] & jnp.isfinite(logits), bounded, logits)


def count_tokens(
    history: Int[Array, "S M"], settings: RowSettings, width: int
) -> tuple[Bool[Array, "R W"], Int[Array, "R W"]]:
    """Whether each token is in the prompt, and how often it is in the output.

    The loop runs over blocks of positions up to the longest penalised request, so the work
    follows the real context and not the model's length. Rows without penalties count nothing.
    """
    lengths = jnp.where(settings.has_penalty, settings.length, 0)
    rows, longest = lengths.shape[0], history.shape[1]
    block = min(HISTORY_BLOCK, longest)
    flat_history = history.reshape(-1)

    def count_block(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        start, tallies = carry
        position = start + np.arange(block, dtype=np.int32)[None]
        # The last block may reach over the end: such positions are beyond every length.
        place = settings.row[:, None] * longest + jnp.minimum(position, longest - 1)
        index = flat_index(take_flat(flat_history, place), width)
        # Marked once per block at most: the marks' sum must not overflow.
        unmarked = jnp.where(take_flat(tallies, index) < IN_PROMPT, IN_PROMPT, 0)
        step = jnp.where(position < settings.prompt_len[:, None], unmarked, 1)
        step = jnp.where(position < lengths[:, None], step, 0)
        tallies = tallies.at[index].add(step, mode="promise_in_bounds", wrap_negative_indices=False)
        return start + block, tallies

    end = jnp.max(lengths)
    start = (jnp.zeros_like(end), jnp.zeros(rows * width, jnp.int32))
    tallies = lax.while_loop(lambda carry: carry[0] < end, count_block, start)[1]
    tallies = tallies.reshape(rows, width)
    return tallies >= IN_PROMPT, tallies & (IN_PROMPT - 1)
