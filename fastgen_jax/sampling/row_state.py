"""The per-request settings and token histories that live on the device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from fastgen_jax.sampling.row_limits import RowLimits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowState:
    """S device rows, one per running request; written at admission, donated to every step.

    Attributes:
        token_ids: prompt, then outputs; beyond the request's length it holds stale tokens.
        settings: everything else that ``pack_row`` packs, in the order of
            ``RowLimits.fields``; floats bit-cast. One array, so that a step reads a row's
            scalars with a single gather, and its tables with another.
        limits: what the rows can hold, and where in them it is; static.
    """

    token_ids: Int[Array, "S M"]
    settings: Int[Array, "S Q"]
    limits: RowLimits = field(metadata={"static": True})

    @property
    def prompt_len(self) -> Int[Array, " S"]:
        """Tokens of each row's prompt."""
        return self.settings[:, self.limits.setting_slices["prompt_len"].start]


def init_row_state(limits: RowLimits) -> RowState:
    """S neutral rows: greedy, nothing masked, empty histories. Traced, or as plain operations."""
    size = limits.max_num_seqs
    history, settings = np.split(limits.neutral_row, [limits.max_model_len])
    return RowState(
        jnp.broadcast_to(jnp.asarray(history)[None], (size, len(history))),
        jnp.broadcast_to(jnp.asarray(settings)[None], (size, len(settings))),
        limits,
    )


def write_row(state: RowState, row: Int[Array, ""], packed: Int[Array, " P"]) -> RowState:
    """The state with device row ``row`` holding the request that ``pack_row`` packed.

    Traced; in place when the caller donates the state. ``row`` must be in [0, S).
    """
    width = state.token_ids.shape[1]
    if packed.size != width + state.settings.shape[1]:
        size = width + state.settings.shape[1]
        raise ValueError(f"packed has {packed.size} words, the state's rows take {size}")
    return replace(
        state,
        token_ids=_set_row(state.token_ids, row, packed[:width]),
        settings=_set_row(state.settings, row, packed[width:]),
    )


def _set_row(
    array: Int[Array, "S N"], row: Int[Array, ""], values: Int[Array, " N"]
) -> Int[Array, "S N"]:
    start = (row, jnp.zeros_like(row))
    return lax.dynamic_update_slice(array, values[None], start, allow_negative_indices=False)


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
    place = state.token_ids.at[target, positions]
    tokens = jnp.maximum(tokens, 0)
    return replace(state, token_ids=place.set(tokens, mode="drop", wrap_negative_indices=False))
