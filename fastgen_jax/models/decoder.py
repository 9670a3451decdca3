"""The decoder: one forward for every family, way of keeping weights, of attending and looping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fastgen_jax.models.attention import Attend, attend_densely, attention
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.dense import DenseWeights
from fastgen_jax.models.layer import LayerIndex, LayerWeights, inner, normalized, products
from fastgen_jax.models.layer_inputs import LayerInputs, layer_inputs
from fastgen_jax.models.moe import OverExperts, mixture, on_one_device
from fastgen_jax.models.norms import normalize
from fastgen_jax.models.packed import PackedWeights
from pallas_kernels.linear import LinearConfig

Weights = DenseWeights | PackedWeights


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder-only transformer whose mathematics is all in its configuration.

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
        lengths: Int[Array, "T"] | None = None,
        over_experts: OverExperts = on_one_device,
    ) -> tuple[Float[Array, "T E"], Cache]:
        """Final hidden state of every token, normalized, and the updated cache.

        ``unroll_layers=True`` repeats the layer's program per layer; False runs one program in a
        loop for each run of layers that are built alike, which compiles in a fraction of the time
        and copies no weight. Tokens from ``num_tokens`` on are padding, whose hidden states are
        undefined; None: there is none. ``lengths`` says for every token how long its text is; only
        a rotary embedding that depends on it needs it (``ModelConfig.depends_on_length``).
        ``over_experts`` runs a mixture's experts where they are.
        """
        config, weights = self.config, self.weights
        inputs = layer_inputs(config, positions, lengths, unrolled=unroll_layers)
        count = jnp.int32(token_ids.shape[0]) if num_tokens is None else num_tokens
        x = self._embed(token_ids, positions)
        for run in runs_of_layers(config):
            layers = weights.layers(config, run, count, unrolled=unroll_layers)
            turn = _turn(config, run, layers, inputs, attend, over_experts)
            if unroll_layers or len(run) == 1:
                for index in run:
                    x, cache = turn(index if unroll_layers else jnp.int32(index), (x, cache))
            else:
                x, cache = lax.fori_loop(run.start, run.stop, turn, (x, cache))
        return self._end(x), cache

    def logits(
        self, hidden: Float[Array, "R E"], num_rows: Int[Array, ""] | None = None
    ) -> Float[Array, "R V"]:
        """Next-token logits, float32; those of rows from ``num_rows`` on are undefined."""
        config = self.config
        count = jnp.int32(hidden.shape[0]) if num_rows is None else num_rows
        logits = self.weights.head_product(hidden, count)
        if config.has_head_bias:
            logits = logits + self.weights.whole("head_bias").astype(jnp.float32)[None]
        if config.logit_scale is not None:
            logits = logits * config.logit_scale
        if config.logit_softcap is not None:
            logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
        return logits

    def _embed(self, token_ids: Int[Array, "T"], positions: Int[Array, "T"]) -> Float[Array, "T E"]:
        config = self.config
        x = self.weights.embed(token_ids)
        if config.embedding_scale is not None:
            # Rounded to the activations' type first, as in training.
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if config.embedding_size is not None:
            x = x @ self.weights.whole("embed_in")
        if config.learned_positions is not None:
            x = x + self.weights.whole("positions")[positions + config.learned_positions.offset]
        return x

    def _end(self, x: Float[Array, "T E"]) -> Float[Array, "T E2"]:
        """What the head is multiplied with."""
        norm, weights = self.config.norm, self.weights
        if self.config.has_final_norm:
            scale = weights.whole("final_norm") if norm.has_scale else None
            bias = weights.whole("final_norm_bias") if norm.has_bias else None
            x = normalize(x, norm, scale, bias)
        return x if self.config.embedding_size is None else x @ weights.whole("embed_out")


def runs_of_layers(config: ModelConfig) -> tuple[range, ...]:
    """The layers in runs whose tensors have the same names and shapes."""
    runs: list[range] = []
    for _, group in groupby(range(config.num_layers), lambda i: config.layers[i].is_sparse):
        layers = list(group)
        runs.append(range(layers[0], layers[-1] + 1))
    return tuple(runs)


def _turn[Cache](
    config: ModelConfig,
    run: range,
    layers: Callable[[LayerIndex], LayerWeights],
    inputs: LayerInputs,
    attend: Attend[Cache],
    over_experts: OverExperts,
) -> Callable[[LayerIndex, tuple[Array, Cache]], tuple[Array, Cache]]:
    is_sparse = config.layers[run.start].is_sparse

    def turn(layer: LayerIndex, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        x, cache = carry
        return _layer_forward(
            config,
            layer,
            layers(layer),
            x,
            inputs,
            attend,
            cache,
            over_experts if is_sparse else None,
        )

    return turn


def _layer_forward[Cache](
    config: ModelConfig,
    layer: LayerIndex,
    weights: LayerWeights,
    x: Float[Array, "T E"],
    inputs: LayerInputs,
    attend: Attend[Cache],
    cache: Cache,
    over_experts: OverExperts | None,
) -> tuple[Float[Array, "T E"], Cache]:
    """``over_experts`` is None where the feed-forward is plain."""
    norms = config.norms
    attn_norm = "attn_norm" if "attn_norm" in norms else None
    # Side by side with the attention, the feed-forward may share its norm.
    shared = attn_norm if config.is_parallel else None
    mlp_norm = "mlp_norm" if "mlp_norm" in norms else shared
    seen, cache = attention(
        config,
        layer,
        weights,
        x,
        attend,
        cache,
        norm=attn_norm,
        rotation=inputs.rotation(layer),
        window=inputs.window(layer),
    )
    attended = _add(config, weights, x, "o", seen, part="attn")
    source = x if config.is_parallel else attended
    if over_experts is not None:
        if mlp_norm is not None:
            source = normalized(config, weights, mlp_norm, source)
        result = mixture(config, weights, source, over_experts)
        return attended + result, cache
    rows = inner(config, weights, source, norm=mlp_norm)
    return _add(config, weights, attended, "down", rows, part="mlp"), cache


def _add(
    config: ModelConfig,
    weights: LayerWeights,
    x: Float[Array, "T E"],
    name: str,
    rows: Float[Array, "T I"],
    *,
    part: Literal["attn", "mlp"],
) -> Float[Array, "T E"]:
    """x and the product of rows with a matrix; that or the sum is normalized where a norm is."""
    if f"{part}_post_norm" in config.norms:
        (product,) = products(config, weights, (name,), rows)
        total = x + normalized(config, weights, f"{part}_post_norm", product)
    else:
        (total,) = products(config, weights, (name,), rows, residual=x)
    if f"{part}_sum_norm" in config.norms:
        total = normalized(config, weights, f"{part}_sum_norm", total)
    return total


def dense_logits(model: Decoder, token_ids: Int[Array, "T"]) -> Float[Array, "T V"]:
    """Logits after every token of one sequence, computed without cache or chunks."""
    positions = jnp.arange(token_ids.shape[0], dtype=jnp.int32)
    hidden, _ = model(
        token_ids,
        positions,
        attend_densely(model.config),
        None,
        unroll_layers=True,
        lengths=jnp.full_like(positions, token_ids.shape[0]),
    )
    return model.logits(hidden)
