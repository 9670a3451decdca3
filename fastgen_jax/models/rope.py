"""Rotary position embedding, rotate-half convention (Su et al., 2021, section 3.4)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope_tables(
    positions: Int[Array, "T"], *, head_dim: int, theta: float
) -> tuple[Float[Array, "T 1 D2"], Float[Array, "T 1 D2"]]:
    """Cosines and sines of every position, float32, with an axis for the heads."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions.astype(jnp.float32)[:, None] * (1.0 / theta**exponents)[None]
    return jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]


def apply_rope(
    x: Float[Array, "T H D"], tables: tuple[Float[Array, "T 1 D2"], Float[Array, "T 1 D2"]]
) -> Float[Array, "T H D"]:
    """x rotated by its positions; computed in float32, returned in x's dtype."""
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
