"""Repetition, frequency and presence penalties from the token histories on the device."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.row_settings import RowSettings

HISTORY_BLOCK = 256  # positions counted per turn of the loop
LOGIT_BOUND = 1e30  # penalised logits stay finite, and above every held-back token's logit


def apply_penalties(
    logits: Float[Array, "R V"], history: Int[Array, "S M"], settings: RowSettings
) -> Float[Array, "R V"]:
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
    # A model's own -inf stays; rows without a penalty keep their logits to the bit.
    is_changed = settings.has_penalty[:, None] & (logits > -jnp.inf)
    return jnp.where(is_changed, bounded, logits)


def count_tokens(
    history: Int[Array, "S M"], settings: RowSettings, vocab_size: int
) -> tuple[Bool[Array, "R V"], Int[Array, "R V"]]:
    """Whether each token is in the prompt, and how often it is in the output.

    The loop runs over blocks of positions up to the longest penalised request, so the work
    follows the real context and not the model's length. Rows without penalties count nothing.
    """
    lengths = jnp.where(settings.has_penalty, settings.length, 0)
    rows, width = lengths.shape[0], history.shape[1]
    block = min(HISTORY_BLOCK, width)
    row_index = jnp.arange(rows, dtype=jnp.int32)[:, None]

    def count_block(
        turn: Int[Array, ""], carry: tuple[Bool[Array, "R V"], Int[Array, "R V"]]
    ) -> tuple[Bool[Array, "R V"], Int[Array, "R V"]]:
        in_prompt, counts = carry
        position = turn * block + jnp.arange(block, dtype=jnp.int32)[None]
        # The last block may reach over the end: such positions are beyond every length.
        clipped = jnp.minimum(position, width - 1)
        token = history[settings.row[:, None], clipped]
        is_prompt = position < jnp.minimum(settings.prompt_len, lengths)[:, None]
        is_output = (position < lengths[:, None]) & ~is_prompt
        prompt_token = jnp.where(is_prompt, token, vocab_size)  # out of range: dropped
        output_token = jnp.where(is_output, token, vocab_size)
        in_prompt = in_prompt.at[row_index, prompt_token].set(True, mode="drop")
        return in_prompt, counts.at[row_index, output_token].add(1, mode="drop")

    turns = (jnp.max(lengths) + (block - 1)) // block
    start = (jnp.zeros((rows, vocab_size), bool), jnp.zeros((rows, vocab_size), jnp.int32))
    return lax.fori_loop(jnp.zeros_like(turns), turns, count_block, start)
