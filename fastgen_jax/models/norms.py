"""Norms of hidden states, and of queries and keys."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fastgen_jax.models.config import NormConfig, QueryKeyNorm


def normalize(
    x: Float[Array, "*B E"],
    config: NormConfig,
    scale: Float[Array, "*S E"] | None,
    bias: Float[Array, "*S E"] | None,
) -> Float[Array, "*B E"]:
    """Rows normalized, scaled and moved: computed in float32, returned in x's dtype."""
    wide = x.astype(jnp.float32)
    if config.kind == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    size = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.epsilon)
    unit = wide * size
    dtype = jnp.float32 if config.is_wide or config.kind == "layer" else x.dtype
    unit = unit.astype(dtype)
    if scale is not None:
        unit = unit * _like(scale.astype(dtype), x)
    if bias is not None:
        unit = unit + _like(bias.astype(dtype), x)
    return unit.astype(x.dtype)


def normalize_heads(
    x: Float[Array, "T H D"],
    config: QueryKeyNorm,
    scale: Float[Array, "N"] | None,
    bias: Float[Array, "N"] | None,
) -> Float[Array, "T H D"]:
    """Queries or keys normalized: each head alone, or all of a token's together."""
    if config.over == "all_heads":
        flat = x.reshape(x.shape[0], -1)
        return normalize(flat, config.norm, scale, bias).reshape(x.shape)
    if config.over == "each_head":
        scale = None if scale is None else scale.reshape(x.shape[1:])
        bias = None if bias is None else bias.reshape(x.shape[1:])
    return normalize(x, config.norm, scale, bias)


def _like(vector: Array, x: Array) -> Array:
    # Explicit, as strict promotion refuses to add axes by itself.
    return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)
