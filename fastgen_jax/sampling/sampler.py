"""From the step's logits to its tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.blocks import first_argmax, pad_to_blocks
from fastgen_jax.sampling.draw import draw_tokens, weigh_tokens
from fastgen_jax.sampling.edits import edit_logits
from fastgen_jax.sampling.groups import change_groups, map_groups, usable_groups
from fastgen_jax.sampling.guards import change_if
from fastgen_jax.sampling.row_settings import RowSettings, gather_settings
from fastgen_jax.sampling.row_state import RowState


def sample(
    logits: Float[Array, "R V"],
    state: RowState,
    rows: Int[Array, " R"],
    positions: Int[Array, " R"],
    is_valid: Bool[Array, " R"],
    *,
    num_groups: int = 1,
) -> Int[Array, " R"]:
    """One token per valid row, by the row's own settings; ``docs/sampling.md`` is the contract.

    A row fails, alone, with token -1, when its logits hold a NaN or +inf, or when no token that
    it may draw has a finite logit. Rows that aren't valid get -1 too.

    Args:
        logits: float32, of the model's own distribution.
        state: the device rows.
        rows: the device row of each row; anything where the row isn't valid.
        positions: tokens of the request so far: the position that the drawn token takes.
        is_valid: False for padding and for rows that don't draw in this step.
        num_groups: equal groups of rows to take one after the other where more than the likeliest
            token is asked for: less memory, more launches. 1 where it doesn't divide R.
    """
    num_groups = usable_groups(logits.shape[0], num_groups)
    settings = gather_settings(state, rows, positions, is_valid)
    logits = change_if(
        jnp.any(settings.has_edit),
        lambda x: change_groups(
            lambda x, settings: edit_logits(x, state, settings), x, settings, num_groups
        ),
        pad_to_blocks(logits, -jnp.inf),
    )
    best, peak = first_argmax(logits)

    def draw() -> Int[Array, " R"]:
        drawn = map_groups(_draw_group, logits, peak, settings, num_groups)
        return jnp.where(settings.is_sampled, drawn, best)

    chosen = lax.cond(jnp.any(settings.is_sampled), draw, lambda: best)
    return jnp.where(is_valid & jnp.isfinite(peak), chosen, -1)


def _draw_group(
    logits: Float[Array, "G W"], peak: Float[Array, " G"], settings: RowSettings
) -> Int[Array, " G"]:
    return draw_tokens(weigh_tokens(logits, peak, settings), settings)
