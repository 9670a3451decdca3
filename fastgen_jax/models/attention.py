"""A layer's attention, from hidden states to what its queries have seen."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fastgen_jax.models.config import AttentionMath, ModelConfig
from fastgen_jax.models.layer import LayerIndex, LayerWeights, products
from fastgen_jax.models.norms import normalize_heads
from fastgen_jax.models.rope import Rotation, apply_rope


class Attend[Cache](Protocol):
    """Stores a layer's new keys and values and returns what its queries see.

    Queries and keys come unrotated: a kernel rotates them on the way. ``rotation`` is None where
    the layer doesn't. ``window`` is the number of keys that a query sees, its own included: an int,
    a traced scalar where layers are looped and differ in it, None for all. ``sinks`` is the score
    of one more key of value 0 for each head.
    """

    def __call__(
        self,
        layer: LayerIndex,
        q: Float[Array, "T H D"],
        k: Float[Array, "T K D"],
        v: Float[Array, "T K D"],
        rotation: Rotation | None,
        cache: Cache,
        *,
        window: int | Int[Array, ""] | None,
        sinks: Float[Array, "H"] | None,
    ) -> tuple[Float[Array, "T H D"], Cache]:
        """Attention output and the cache with this layer's keys and values in it."""
        ...


def attention[Cache](
    config: ModelConfig,
    layer: LayerIndex,
    weights: LayerWeights,
    x: Float[Array, "T E"],
    attend: Attend[Cache],
    cache: Cache,
    *,
    norm: str | None,
    rotation: Rotation | None,
    window: int | Int[Array, ""] | None,
) -> tuple[Float[Array, "T A"], Cache]:
    """What every head has seen, side by side, ready for the output product; and the cache."""
    num_tokens, head_dim = x.shape[0], config.head_dim
    q, k, v = products(config, weights, ("q", "k", "v"), x, norm=norm)
    q = q.reshape(num_tokens, config.num_heads, head_dim)
    k = k.reshape(num_tokens, config.num_kv_heads, head_dim)
    v = v.reshape(num_tokens, config.num_kv_heads, head_dim)
    head_norm = config.attention.query_key_norm
    if head_norm is not None:
        parts = head_norm.norm
        q, k = (
            normalize_heads(
                heads,
                head_norm,
                weights.vector(name) if parts.has_scale else None,
                weights.vector(f"{name}_bias") if parts.has_bias else None,
            )
            for name, heads in (("q_norm", q), ("k_norm", k))
        )
    if config.attention.query_scales is not None:
        q = q * jnp.asarray(config.attention.query_scales, q.dtype)[layer]
    sinks = weights.vector("sinks") if config.attention.has_sinks else None
    seen, cache = attend(layer, q, k, v, rotation, cache, window=window, sinks=sinks)
    return seen.reshape(num_tokens, -1), cache


def dense_attention(
    q: Float[Array, "T H D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    *,
    math: AttentionMath,
    window: int | None = None,
    sinks: Float[Array, "H"] | None = None,
) -> Float[Array, "T H D"]:
    """Causal attention of one whole sequence without a cache: the plainest reference."""
    num_tokens, num_heads, head_dim = q.shape
    grouped = q.reshape(num_tokens, k.shape[1], -1, head_dim)
    scores = jnp.einsum("tkgd,skd->kgts", grouped, k, preferred_element_type=jnp.float32)
    scores = scores * math.scale
    if math.softcap is not None:
        scores = math.softcap * jnp.tanh(scores / math.softcap)
    is_seen = jnp.tril(jnp.ones((num_tokens, num_tokens), bool))
    if window is not None:
        is_seen = is_seen & ~jnp.tril(is_seen, -window)
    scores = jnp.where(is_seen[None, None], scores, -jnp.inf)
    if sinks is not None:
        extra = sinks.astype(jnp.float32).reshape(*scores.shape[:2], 1, 1)
        extra = jnp.broadcast_to(extra, (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, extra], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., :num_tokens]
    seen = jnp.einsum("kgts,skd->tkgd", weights.astype(v.dtype), v)
    return seen.reshape(num_tokens, num_heads, head_dim)


def attend_densely(config: ModelConfig) -> Attend[None]:
    """An Attend over one whole sequence, for unrolled layers, that keeps no cache."""

    def attend(
        layer: LayerIndex,
        q: Array,
        k: Array,
        v: Array,
        rotation: Rotation | None,
        cache: None,
        *,
        window: int | Array | None,
        sinks: Array | None,
    ) -> tuple[Array, None]:
        assert window is None or isinstance(window, int), "layers that differ must be unrolled"
        if rotation is not None:
            q, k = apply_rope(q, rotation), apply_rope(k, rotation)
        seen = dense_attention(q, k, v, math=config.attention, window=window, sinks=sinks)
        return seen, cache

    return attend
