"""The per-request settings and token histories that live on the device."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from fastgen_jax.sampling.row_limits import RowLimits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowState:
    """S device rows, one per running request; written at admission, donated to every step.

    Fields stand in the order of ``RowLimits.fields``. Ids of -1 are empty slots.

    Attributes:
        token_ids: prompt, then outputs; beyond the request's length it holds stale tokens.
        prompt_len: tokens of the prompt.
        min_position: stop_ids can't be drawn at positions below this one.
        seed: high and low word of the request's random stream.
        temperature: 0 is greedy.
        top_k: V is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition_penalty: 1 is off.
        presence_penalty: 0 is off.
        frequency_penalty: 0 is off.
        num_logprobs: alternatives wanted; -1 when not even the drawn token's is.
        has_allowed: 1 when allowed_mask restricts the row.
        allowed_mask: bit t % 32 of word t // 32 allows token t.
        bias_ids: tokens that bias_values are added to.
        bias_values: see bias_ids.
        bad_words: right-aligned sequences; the last token is masked where the others precede.
        stop_ids: EOS and stop tokens held back below min_position.
        max_logprobs: K, static.
    """

    token_ids: Int[Array, "S M"]
    prompt_len: Int[Array, " S"]
    min_position: Int[Array, " S"]
    seed: UInt[Array, "S 2"]
    temperature: Float[Array, " S"]
    top_k: Int[Array, " S"]
    top_p: Float[Array, " S"]
    min_p: Float[Array, " S"]
    repetition_penalty: Float[Array, " S"]
    presence_penalty: Float[Array, " S"]
    frequency_penalty: Float[Array, " S"]
    num_logprobs: Int[Array, " S"]
    has_allowed: Int[Array, " S"]
    allowed_mask: UInt[Array, "S V32"]
    bias_ids: Int[Array, "S B"]
    bias_values: Float[Array, "S B"]
    bad_words: Int[Array, "S W N"]
    stop_ids: Int[Array, "S E"]
    max_logprobs: int = field(metadata={"static": True})


def init_row_state(limits: RowLimits) -> RowState:
    """S neutral rows: greedy, nothing masked, empty histories."""
    arrays = {
        spec.name: jnp.full((limits.max_num_seqs, *spec.shape), spec.neutral, dtype=spec.dtype)
        for spec in limits.fields
    }
    return RowState(**arrays, max_logprobs=limits.max_logprobs)


def write_row(state: RowState, row: Int[Array, ""], packed: Int[Array, " P"]) -> RowState:
    """The state with device row ``row`` holding the request that ``pack_row`` packed.

    Traced; in place when the caller donates the state. ``row`` must be in [0, S).
    """
    written = {}
    start = 0
    for spec in fields(state):
        if spec.name == "max_logprobs":
            continue
        array = getattr(state, spec.name)
        size = array[0].size
        words = lax.bitcast_convert_type(packed[start : start + size], array.dtype)
        start += size
        values = words.reshape(array.shape[1:])
        written[spec.name] = lax.dynamic_update_index_in_dim(array, values, row, 0)
    if start != packed.size:
        raise ValueError(f"packed has {packed.size} words, the state's rows take {start}")
    return replace(state, **written)


def append_tokens(
    state: RowState,
    rows: Int[Array, " R"],
    positions: Int[Array, " R"],
    tokens: Int[Array, " R"],
    is_valid: Bool[Array, " R"],
) -> RowState:
    """The state with ``history[rows[r], positions[r]] = tokens[r]`` for the valid r.

    Traced; in place when the caller donates the state. A failed draw (-1) is stored as token 0:
    a step already in flight may read it, and an embedding must not be asked for row -1.
    """
    num_rows = state.token_ids.shape[0]
    target = jnp.where(is_valid, rows, num_rows)  # out of range: dropped
    token_ids = state.token_ids.at[target, positions].set(jnp.maximum(tokens, 0), mode="drop")
    return replace(state, token_ids=token_ids)
