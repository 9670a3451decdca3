"""The settings of the R rows of one step, gathered from the S device rows."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from fastgen_jax.sampling.row_state import RowState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSettings:
    """What each row of the step asks for; rows that aren't valid ask for nothing.

    Attributes:
        row: device row, 0 for rows that aren't valid.
        length: tokens of the request so far, 0 for rows that aren't valid; the drawn token goes
            there.
        temperature: 1 for rows that are greedy or not valid.
    """

    row: Int[Array, " R"]
    length: Int[Array, " R"]
    prompt_len: Int[Array, " R"]
    seed: UInt[Array, "R 2"]
    temperature: Float[Array, " R"]
    top_k: Int[Array, " R"]
    top_p: Float[Array, " R"]
    min_p: Float[Array, " R"]
    repetition_penalty: Float[Array, " R"]
    presence_penalty: Float[Array, " R"]
    frequency_penalty: Float[Array, " R"]
    is_valid: Bool[Array, " R"]
    is_sampled: Bool[Array, " R"]
    has_filter: Bool[Array, " R"]
    has_penalty: Bool[Array, " R"]
    has_allowed: Bool[Array, " R"]
    has_bias: Bool[Array, " R"]
    has_bad_words: Bool[Array, " R"]
    holds_back: Bool[Array, " R"]
    wants_logprobs: Bool[Array, " R"]

    @property
    def has_edit(self) -> Bool[Array, " R"]:
        """True where the logits have to be changed before a token is chosen."""
        changes = self.has_penalty | self.has_allowed | self.has_bias
        return changes | self.has_bad_words | self.holds_back


def gather_settings(
    state: RowState,
    rows: Int[Array, " R"],
    positions: Int[Array, " R"],
    is_valid: Bool[Array, " R"],
    vocab_size: int,
) -> RowSettings:
    """The settings of the step's rows; indices of rows that aren't valid may be anything."""
    row = jnp.where(is_valid, rows, 0).astype(jnp.int32)
    temperature = state.temperature[row]
    top_k, top_p, min_p = state.top_k[row], state.top_p[row], state.min_p[row]
    repetition = state.repetition_penalty[row]
    presence, frequency = state.presence_penalty[row], state.frequency_penalty[row]
    is_sampled = is_valid & (temperature > 0)
    filtered = (top_k < vocab_size) | (top_p < 1) | (min_p > 0)
    penalized = (repetition != 1) | (presence != 0) | (frequency != 0)
    return RowSettings(
        row=row,
        length=jnp.where(is_valid, positions, 0).astype(jnp.int32),
        prompt_len=state.prompt_len[row],
        seed=state.seed[row],
        temperature=jnp.where(is_sampled, temperature, 1),
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        is_valid=is_valid,
        is_sampled=is_sampled,
        has_filter=is_sampled & filtered,
        has_penalty=is_valid & penalized,
        has_allowed=is_valid & (state.has_allowed[row] != 0),
        has_bias=is_valid & _any_slot(state.bias_ids)[row],
        has_bad_words=is_valid & _any_slot(state.bad_words[:, :, -1])[row],
        holds_back=is_valid & (positions < state.min_position[row]),
        wants_logprobs=is_valid & (state.num_logprobs[row] >= 0),
    )


def _any_slot(ids: Int[Array, "S N"]) -> Bool[Array, " S"]:
    """True where a row holds an id; slots are filled from the front."""
    if ids.shape[1] == 0:
        return jnp.zeros(ids.shape[0], bool)
    return ids[:, 0] >= 0
