"""Everything that changes logits before a token is chosen: masks, bias and penalties."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from fastgen_jax.sampling.penalties import apply_penalties
from fastgen_jax.sampling.row_limits import MASK_BITS
from fastgen_jax.sampling.row_settings import RowSettings
from fastgen_jax.sampling.row_state import RowState

# Bad words and early stop tokens get this logit and not -inf: no other token's logit is below
# it, so they are never drawn, unless nothing else is allowed; then they are equally likely.
BANNED_LOGIT = -1e38


def edit_logits(
    logits: Float[Array, "R V"], state: RowState, settings: RowSettings
) -> Float[Array, "R V"]:
    """The logits after allowed ids, bad words, min_tokens, logit_bias and penalties.

    The masks come last here, which changes nothing: neither bias nor penalty revives a masked
    token, and penalties can't turn a held-back token into a likely one.
    """
    row_index = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    ids = _slots(state.bias_ids[settings.row], settings.has_bias, logits.shape[1])
    values = state.bias_values[settings.row]
    logits = logits.at[row_index, ids].add(values, mode="drop")
    logits = lax.cond(
        jnp.any(settings.has_penalty),
        lambda x: apply_penalties(x, state.token_ids, settings),
        lambda x: x,
        logits,
    )
    allowed = unpack_mask(state.allowed_mask[settings.row], logits.shape[1])
    logits = jnp.where(allowed | ~settings.has_allowed[:, None], logits, -jnp.inf)
    banned = jnp.concatenate(
        [
            _slots(_completed_bad_words(state, settings), settings.has_bad_words, logits.shape[1]),
            _slots(state.stop_ids[settings.row], settings.holds_back, logits.shape[1]),
        ],
        axis=1,
    )
    return logits.at[row_index, banned].min(BANNED_LOGIT, mode="drop")


def unpack_mask(words: UInt[Array, "R V32"], vocab_size: int) -> Bool[Array, "R V"]:
    """One truth value per token from the bitmask's words."""
    shifts = jnp.arange(MASK_BITS, dtype=jnp.uint32)[None, None]
    bits = (words[:, :, None] >> shifts) & 1
    return bits.reshape(words.shape[0], -1)[:, :vocab_size] != 0


def _completed_bad_words(state: RowState, settings: RowSettings) -> Int[Array, "R W"]:
    """The tokens that would complete a bad word now; -1 where none would."""
    words = state.bad_words[settings.row]
    prefix, last = words[:, :, :-1], words[:, :, -1]
    context = prefix.shape[2]
    position = settings.length[:, None] + (jnp.arange(context, dtype=jnp.int32) - context)[None]
    clipped = jnp.clip(position, 0, state.token_ids.shape[1] - 1)
    tokens = jnp.where(position >= 0, state.token_ids[settings.row[:, None], clipped], -2)
    matches = jnp.all((prefix < 0) | (prefix == tokens[:, None, :]), axis=-1)
    return jnp.where(matches, last, -1)


def _slots(
    ids: Int[Array, "R N"], is_active: Bool[Array, " R"], vocab_size: int
) -> Int[Array, "R N"]:
    """The ids with empty and inactive slots moved out of range, where scatters drop them."""
    return jnp.where((ids >= 0) & is_active[:, None], ids, vocab_size)
