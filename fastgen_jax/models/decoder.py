"""The decoder: one forward for every way of keeping weights, of attending and of looping."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.dense import DenseWeights, rms_norm
from fastgen_jax.models.layer import LayerIndex, LayerWeights
from fastgen_jax.models.packed import PackedWeights
from fastgen_jax.models.rope import Rotation, apply_rope, rope_tables
from pallas_kernels.linear import LinearConfig

Weights = DenseWeights | PackedWeights


class Attend[Cache](Protocol):
    """Stores a layer's new keys and values and returns what its queries see.

    Queries and keys come unrotated: a kernel rotates them on the way.
    """

    def __call__(
        self,
        layer: LayerIndex,
        q: Float[Array, "T H D"],
        k: Float[Array, "T K D"],
        v: Float[Array, "T K D"],
        rotation: Rotation,
        cache: Cache,
    ) -> tuple[Float[Array, "T H D"], Cache]:
        """Attention output and the cache with this layer's keys and values in it."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder-only transformer: pre-norm, rotary attention, gated MLP.

    A pytree whose leaves are the weights. ``models.module.DecoderModule`` is the same as a flax
    module.
    """

    config: ModelConfig = field(metadata={"static": True})
    weights: Weights

    def with_linear(self, config: LinearConfig) -> Decoder:
        """The same model with its packed weights multiplied another way."""
        if not isinstance(self.weights, PackedWeights):
            raise TypeError("linear: the weights aren't packed; leave it out")
        return replace(self, weights=replace(self.weights, linear=config))

    def __call__[Cache](
        self,
        token_ids: Int[Array, "T"],
        positions: Int[Array, "T"],
        attend: Attend[Cache],
        cache: Cache,
        *,
        unroll_layers: bool,
        num_tokens: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "T E"], Cache]:
        """Final hidden state of every token, normalized, and the updated cache.

        ``unroll_layers=True`` repeats the layer's program per layer; False runs one program in a
        loop, which compiles in a fraction of the time and copies no weight. Tokens from
        ``num_tokens`` on are padding, whose hidden states are undefined; None: there is none.
        """
        config, weights = self.config, self.weights
        rotation = rope_tables(positions, head_dim=config.head_dim, theta=config.rope_theta)
        count = jnp.int32(token_ids.shape[0]) if num_tokens is None else num_tokens
        x = weights.embed(token_ids)
        layers = weights.layers(count, config.rms_norm_eps, unrolled=unroll_layers)

        def run(layer: LayerIndex, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
            x, cache = carry
            return _layer_forward(config, layer, layers(layer), x, rotation, attend, cache)

        if unroll_layers:
            for index in range(config.num_layers):
                x, cache = run(index, (x, cache))
        else:
            x, cache = lax.fori_loop(0, config.num_layers, run, (x, cache))
        return rms_norm(x, weights.final_norm, config.rms_norm_eps), cache

    def logits(
        self, hidden: Float[Array, "R E"], num_rows: Int[Array, ""] | None = None
    ) -> Float[Array, "R V"]:
        """Next-token logits, float32; those of rows from ``num_rows`` on are undefined."""
        count = jnp.int32(hidden.shape[0]) if num_rows is None else num_rows
        return self.weights.head_product(hidden, count)


def _layer_forward[Cache](
    config: ModelConfig,
    layer: LayerIndex,
    weights: LayerWeights,
    x: Float[Array, "T E"],
    rotation: Rotation,
    attend: Attend[Cache],
    cache: Cache,
) -> tuple[Float[Array, "T E"], Cache]:
    num_tokens, head_dim = x.shape[0], config.head_dim
    q, k, v = weights.product(("q", "k", "v"), x, norm="attn_norm")
    q = q.reshape(num_tokens, config.num_heads, head_dim)
    k = k.reshape(num_tokens, config.num_kv_heads, head_dim)
    v = v.reshape(num_tokens, config.num_kv_heads, head_dim)
    seen, cache = attend(layer, q, k, v, rotation, cache)
    (x,) = weights.product(("o",), seen.reshape(num_tokens, -1), residual=x)
    (inner,) = weights.product(("gate", "up"), x, norm="mlp_norm", gated=True)
    (x,) = weights.product(("down",), inner, residual=x)
    return x, cache


def dense_attention(
    q: Float[Array, "T H D"], k: Float[Array, "T K D"], v: Float[Array, "T K D"]
) -> Float[Array, "T H D"]:
    """Causal attention of one whole sequence without a cache: the plainest reference."""
    num_tokens, num_heads, head_dim = q.shape
    grouped = q.reshape(num_tokens, k.shape[1], -1, head_dim)
    scores = jnp.einsum("tkgd,skd->kgts", grouped, k, preferred_element_type=jnp.float32)
    is_seen = jnp.tril(jnp.ones((num_tokens, num_tokens), bool))[None, None]
    weights = jax.nn.softmax(jnp.where(is_seen, scores * head_dim**-0.5, -jnp.inf), axis=-1)
    seen = jnp.einsum("kgts,skd->tkgd", weights.astype(v.dtype), v)
    return seen.reshape(num_tokens, num_heads, head_dim)


def dense_logits(model: Decoder, token_ids: Int[Array, "T"]) -> Float[Array, "T V"]:
    """Logits after every token of one sequence, computed without cache or chunks."""

    def attend(
        layer: LayerIndex, q: Array, k: Array, v: Array, rotation: Rotation, cache: None
    ) -> tuple[Array, None]:
        return dense_attention(apply_rope(q, rotation), apply_rope(k, rotation), v), cache

    positions = jnp.arange(token_ids.shape[0], dtype=jnp.int32)
    hidden, _ = model(token_ids, positions, attend, None, unroll_layers=True)
    return model.logits(hidden)
