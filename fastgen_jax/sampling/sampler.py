"""From the step's logits to its tokens and their log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.blocks import first_argmax
from fastgen_jax.sampling.draw import draw_tokens, weigh_tokens
from fastgen_jax.sampling.edits import edit_logits
from fastgen_jax.sampling.logprobs import empty_logprobs, token_logprobs
from fastgen_jax.sampling.row_settings import RowSettings, gather_settings
from fastgen_jax.sampling.row_state import RowState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Samples:
    """What the R rows of a step drew.

    The log-probabilities are zeros in steps where no row wants them; else they are there for
    every row.

    Attributes:
        token_ids: the drawn tokens; -1 where the row failed, and in rows that aren't valid.
        chosen_logprob: log-probability of the drawn token in the model's own distribution.
        rank: 1 + how many tokens are strictly likelier in it.
        top_ids: its K most likely tokens.
        top_logprobs: their log-probabilities.
    """

    token_ids: Int[Array, " R"]
    chosen_logprob: Float[Array, " R"]
    rank: Int[Array, " R"]
    top_ids: Int[Array, "R K"]
    top_logprobs: Float[Array, "R K"]


def sample(
    logits: Float[Array, "R V"],
    state: RowState,
    rows: Int[Array, " R"],
    positions: Int[Array, " R"],
    is_valid: Bool[Array, " R"],
) -> Samples:
    """One token per valid row, by the row's own settings; ``docs/sampling.md`` is the contract.

    A row fails, alone, with token -1, when its logits hold a NaN or +inf, or when no token that
    it may draw has a finite logit.

    Args:
        logits: float32, of the model's own distribution.
        state: the device rows.
        rows: the device row of each row; anything where the row isn't valid.
        positions: tokens of the request so far: the position that the drawn token takes.
        is_valid: False for padding and for rows that don't draw in this step.
    """
    settings = gather_settings(state, rows, positions, is_valid, logits.shape[1])
    best, peak = first_argmax(logits)
    chosen, chosen_peak = lax.cond(
        jnp.any(settings.has_edit | settings.is_sampled),
        lambda: _choose(logits, best, peak, state, settings),
        lambda: (best, peak),
    )
    is_finite = jnp.isfinite(peak) & jnp.isfinite(chosen_peak)
    token_ids = jnp.where(is_valid & is_finite, chosen, -1)
    k = state.max_logprobs
    found = lax.cond(
        jnp.any(settings.wants_logprobs),
        lambda: token_logprobs(logits, token_ids, k),
        lambda: empty_logprobs(logits.shape[0], k),
    )
    return Samples(token_ids, found.chosen, found.rank, found.top_ids, found.top)


def _choose(
    logits: Float[Array, "R V"],
    best: Int[Array, " R"],
    peak: Float[Array, " R"],
    state: RowState,
    settings: RowSettings,
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """Each row's token and largest logit after edits: drawn, or the likeliest where greedy."""

    def edit() -> tuple[Array, Array, Array]:
        edited = edit_logits(logits, state, settings)
        likeliest, edited_peak = first_argmax(edited)
        return weigh_tokens(edited, edited_peak, settings), likeliest, edited_peak

    # The branches meet in the weights and not in the logits: a branch that only handed the
    # logits through would make XLA copy them.
    weights, likeliest, edited_peak = lax.cond(
        jnp.any(settings.has_edit),
        edit,
        lambda: (weigh_tokens(logits, peak, settings), best, peak),
    )
    chosen = lax.cond(
        jnp.any(settings.is_sampled),
        lambda: jnp.where(settings.is_sampled, draw_tokens(weights, settings), likeliest),
        lambda: likeliest,
    )
    return chosen, edited_peak
