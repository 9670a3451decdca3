"""Work on large arrays that a step does only when some row needs it."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Shaped


def change_if(
    is_needed: Bool[Array, ""],
    change: Callable[[Shaped[Array, "*shape"]], Shaped[Array, "*shape"]],
    values: Shaped[Array, "*shape"],
) -> Shaped[Array, "*shape"]:
    """``change(values)`` when it is needed, else the values themselves; in place either way."""

    # A loop of at most one turn: XLA copies whatever a branch of lax.cond hands through.
    def turn(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.zeros_like(carry[0]), change(carry[1])

    return lax.while_loop(lambda carry: carry[0], turn, (is_needed, values))[1]
