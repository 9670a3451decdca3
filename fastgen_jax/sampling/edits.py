"""Everything that changes logits before a token is chosen: masks, bias and penalties."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.blocks import flat_index, take_flat
from fastgen_jax.sampling.guards import change_if
from fastgen_jax.sampling.penalties import apply_penalties
from fastgen_jax.sampling.row_limits import MASK_BITS
from fastgen_jax.sampling.row_settings import RowSettings
from fastgen_jax.sampling.row_state import RowState

# Bad words and early stop tokens get this logit and not -inf: no other token's logit is below
# it, so they are never drawn, unless nothing else is allowed; then they are equally likely.
BANNED_LOGIT = -1e38


def edit_logits(
    logits: Float[Array, "R W"], state: RowState, settings: RowSettings
) -> Float[Array, "R W"]:
    """The logits after allowed ids, bad words, min_tokens, logit_bias and penalties.

    The masks come last here, which changes nothing: neither bias nor penalty revives a masked
    token, and penalties can't turn a held-back token into a likely one. NaN and +inf stay what
    they are, so that the row is seen to be broken.
    """
    tables = _gather_tables(state, settings)
    bias_values = lax.bitcast_convert_type(tables["bias_values"], jnp.float32)
    logits = _add_at(logits, tables["bias_ids"], bias_values)
    logits = change_if(
        jnp.any(settings.has_penalty | settings.has_allowed),
        lambda x: _mask_not_allowed(apply_penalties(x, state.token_ids, settings), state, settings),
        logits,
    )
    return _ban_at(logits, _banned_ids(tables, state, settings))


def unpack_mask(words: Int[Array, "R V32"], width: int) -> Bool[Array, "R W"]:
    """One truth value per token from the bitmask's words; false beyond them."""
    shifts = np.arange(MASK_BITS, dtype=np.int32)[None, None]
    bits = ((words[:, :, None] >> shifts) & 1).reshape(words.shape[0], -1)
    if bits.shape[1] < width:
        bits = jnp.pad(bits, ((0, 0), (0, width - bits.shape[1])))
    return bits[:, :width] != 0


def _gather_tables(state: RowState, settings: RowSettings) -> dict[str, Int[Array, "R N"]]:
    """The rows' short tables by name, with one gather."""
    place = state.limits.setting_slices
    start, stop = place["bias_ids"].start, place["stop_ids"].stop
    tables = take_flat(state.settings[:, start:stop], settings.row)
    return {
        name: tables[:, place[name].start - start : place[name].stop - start]
        for name in ("bias_ids", "bias_values", "bad_words", "stop_ids")
    }


def _add_at(
    logits: Float[Array, "R W"], ids: Int[Array, "R N"], values: Float[Array, "R N"]
) -> Float[Array, "R W"]:
    """The values added at their ids; nothing at ids of -1, whose values are zeros."""
    index = flat_index(jnp.maximum(ids, 0), logits.shape[1])
    added = (
        logits.reshape(-1)
        .at[index]
        .add(values, mode="promise_in_bounds", wrap_negative_indices=False)
    )
    return added.reshape(logits.shape)


def _ban_at(logits: Float[Array, "R W"], ids: Int[Array, "R N"]) -> Float[Array, "R W"]:
    """The logits of the ids at most BANNED_LOGIT; +inf stays."""
    flat = logits.reshape(-1)
    index = flat_index(jnp.maximum(ids, 0), logits.shape[1])
    before = take_flat(flat, index)
    bounds = jnp.where((ids >= 0) & (before < jnp.inf), BANNED_LOGIT, jnp.inf)
    banned = flat.at[index].min(bounds, mode="promise_in_bounds", wrap_negative_indices=False)
    return banned.reshape(logits.shape)


def _mask_not_allowed(
    logits: Float[Array, "R W"], state: RowState, settings: RowSettings
) -> Float[Array, "R W"]:
    words = take_flat(state.settings[:, state.limits.setting_slices["allowed_mask"]], settings.row)
    is_kept = unpack_mask(words, logits.shape[1]) | ~settings.has_allowed[:, None]
    is_broken = ~(logits < jnp.inf)
    return jnp.where(is_kept | is_broken, logits, -jnp.inf)


def _banned_ids(
    tables: dict[str, Int[Array, "R N"]], state: RowState, settings: RowSettings
) -> Int[Array, "R W"]:
    """What bad words and min_tokens mask now; -1 in empty slots."""
    stop_ids = jnp.where(settings.holds_back[:, None], tables["stop_ids"], -1)
    completing = _completed_bad_words(tables["bad_words"], state, settings)
    return jnp.concatenate([completing, stop_ids], axis=1)


def _completed_bad_words(
    table: Int[Array, "R WN"], state: RowState, settings: RowSettings
) -> Int[Array, "R W"]:
    """The tokens that would complete a bad word now; -1 where none would."""
    limits = state.limits
    words = table.reshape(table.shape[0], limits.max_bad_words, limits.max_bad_word_len)
    prefix, last = words[:, :, :-1], words[:, :, -1]
    context = prefix.shape[2]
    before = np.arange(context, dtype=np.int32)[None] - np.int32(context)
    position = settings.length[:, None] + before
    width = state.token_ids.shape[1]
    index = settings.row[:, None] * width + jnp.clip(position, 0, width - 1)
    tokens = jnp.where(position >= 0, take_flat(state.token_ids.reshape(-1), index), -2)
    matches = jnp.all((prefix < 0) | (prefix == tokens[:, None, :]), axis=-1)
    return jnp.where(matches, last, -1)
