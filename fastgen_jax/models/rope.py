"""Rotary position embedding, rotate-half convention (Su et al., 2021, section 3.4)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, "T D2"], Float[Array, "T D2"]]  # cosines and sines, float32


def rope_tables(positions: Int[Array, "T"], *, head_dim: int, theta: float) -> Rotation:
    """Cosines and sines of every position."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions.astype(jnp.float32)[:, None] * (1.0 / theta**exponents)[None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: Float[Array, "T H D"], rotation: Rotation) -> Float[Array, "T H D"]:
    """x rotated by its positions; computed in float32, returned in x's dtype."""
    cos, sin = (table[:, None] for table in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
