"""The decoder: one nnx module for people, one forward for every way of attending and looping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.rope import Rotation, apply_rope, rope_tables

LayerIndex = int | Array  # a Python int when layers are unrolled, a traced scalar when looped

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
VECTORS = ("attn_norm", "mlp_norm")


class Attend[Cache](Protocol):
    """Stores a layer's new keys and values and returns what its queries see.

    The queries come rotated, the keys don't: writing them to a cache is where a kernel rotates
    them on the way.
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


class DecoderLayer(nnx.Module):
    """One layer's weights; matrices are stored [in, out]."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        for name in (*VECTORS, *MATRICES):
            setattr(self, name, nnx.Param(weights[name]))


class Decoder(nnx.Module):
    """A decoder-only transformer: pre-norm, rotary attention, gated MLP.

    ``weights`` maps the names of ``models.registry.expected_shapes`` to arrays of one dtype.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.embed = nnx.Param(weights["embed"])
        self.layers = nnx.List(
            DecoderLayer({name: weights[f"layers.{i}.{name}"] for name in (*VECTORS, *MATRICES)})
            for i in range(config.num_layers)
        )
        self.final_norm = nnx.Param(weights["final_norm"])
        self.head = None if config.tie_word_embeddings else nnx.Param(weights["head"])

    def __call__[Cache](
        self,
        token_ids: Int[Array, "T"],
        positions: Int[Array, "T"],
        attend: Attend[Cache],
        cache: Cache,
        *,
        unroll_layers: bool,
    ) -> tuple[Float[Array, "T E"], Cache]:
        """Final hidden state of every token, normalized, and the updated cache.

        ``unroll_layers=True`` repeats the layer's program per layer; False runs one program in a
        loop and switches between the layers' matrices, which compiles in a fraction of the time
        and copies no weight.
        """
        x = self.embed[...][token_ids]
        config = self.config
        rotation = rope_tables(positions, head_dim=config.head_dim, theta=config.rope_theta)

        def run(layer: LayerIndex, weights: _LayerWeights, x: Array, cache: Cache):
            return _layer_forward(self.config, layer, weights, x, rotation, attend, cache)

        if unroll_layers:
            for index, layer in enumerate(self.layers):
                x, cache = run(index, _OneLayer(layer), x, cache)
        else:
            vectors = {
                name: jnp.stack([getattr(layer, name)[...] for layer in self.layers])
                for name in VECTORS
            }

            def body(index: Array, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
                return run(index, _SwitchedLayer(index, self.layers, vectors), *carry)

            x, cache = lax.fori_loop(0, self.config.num_layers, body, (x, cache))
        return rms_norm(x, self.final_norm[...], self.config.rms_norm_eps), cache

    def logits(self, hidden: Float[Array, "R E"]) -> Float[Array, "R V"]:
        """Next-token logits, float32."""
        head = self.embed if self.head is None else self.head
        return jnp.einsum("re,ve->rv", hidden, head[...], preferred_element_type=jnp.float32)


class _LayerWeights(Protocol):
    def vector(self, name: str) -> Float[Array, "E"]: ...

    def project(self, names: tuple[str, ...], x: Float[Array, "T I"]) -> tuple[Array, ...]: ...


class _OneLayer:
    def __init__(self, layer: DecoderLayer) -> None:
        self._layer = layer

    def vector(self, name: str) -> Float[Array, "E"]:
        return getattr(self._layer, name)[...]

    def project(self, names: tuple[str, ...], x: Float[Array, "T I"]) -> tuple[Array, ...]:
        return tuple(x @ getattr(self._layer, name)[...] for name in names)


class _SwitchedLayer:
    """The layer of a traced index: a branch per layer holds nothing but its products."""

    def __init__(
        self, index: Array, layers: nnx.List[DecoderLayer], vectors: Mapping[str, Array]
    ) -> None:
        self._index = index
        self._layers = layers
        self._vectors = vectors

    def vector(self, name: str) -> Float[Array, "E"]:
        return self._vectors[name][self._index]

    def project(self, names: tuple[str, ...], x: Float[Array, "T I"]) -> tuple[Array, ...]:
        def branch(layer: DecoderLayer) -> Callable[[Array], tuple[Array, ...]]:
            matrices = [getattr(layer, name)[...] for name in names]
            return lambda x: tuple(x @ matrix for matrix in matrices)

        return lax.switch(self._index, [branch(layer) for layer in self._layers], x)


def _layer_forward[Cache](
    config: ModelConfig,
    layer: LayerIndex,
    weights: _LayerWeights,
    x: Float[Array, "T E"],
    rotation: Rotation,
    attend: Attend[Cache],
    cache: Cache,
) -> tuple[Float[Array, "T E"], Cache]:
    num_tokens, head_dim = x.shape[0], config.head_dim
    normed = rms_norm(x, weights.vector("attn_norm"), config.rms_norm_eps)
    q, k, v = weights.project(("q", "k", "v"), normed)
    q = apply_rope(q.reshape(num_tokens, config.num_heads, head_dim), rotation)
    k = k.reshape(num_tokens, config.num_kv_heads, head_dim)
    v = v.reshape(num_tokens, config.num_kv_heads, head_dim)
    seen, cache = attend(layer, q, k, v, rotation, cache)
    (attended,) = weights.project(("o",), seen.reshape(num_tokens, -1))
    x = x + attended
    normed = rms_norm(x, weights.vector("mlp_norm"), config.rms_norm_eps)
    gate, up = weights.project(("gate", "up"), normed)
    (out,) = weights.project(("down",), jax.nn.silu(gate) * up)
    return x + out, cache


def rms_norm(
    x: Float[Array, "T E"], weight: Float[Array, "E"], epsilon: float
) -> Float[Array, "T E"]:
    """x scaled to unit mean square in float32, times the weight (Zhang and Sennrich, 2019)."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype) * weight[None]


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
        return dense_attention(q, apply_rope(k, rotation), v), cache

    positions = jnp.arange(token_ids.shape[0], dtype=jnp.int32)
    hidden, _ = model(token_ids, positions, attend, None, unroll_layers=True)
    return model.logits(hidden)
