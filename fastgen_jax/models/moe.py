"""A mixture of experts: each token goes through a few feed-forwards of many."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.models.activations import activate
from fastgen_jax.models.config import ModelConfig, MoeConfig
from fastgen_jax.models.layer import LayerWeights, inner


def route(
    logits: Float[Array, "T X"], config: MoeConfig
) -> tuple[Float[Array, "T C"], Int[Array, "T C"]]:
    """Weights, float32, and numbers of the experts that each token goes to."""
    logits = logits.astype(jnp.float32)
    if config.softmax_first:
        weights, experts = lax.top_k(jax.nn.softmax(logits, axis=-1), config.top_k)
    else:
        chosen, experts = lax.top_k(logits, config.top_k)
        weights = jax.nn.softmax(chosen, axis=-1)
    if config.normalizes_chosen:
        weights = weights / weights.sum(-1, keepdims=True)
    return weights, experts


class ExpertsFunction(Protocol):
    """What a device's experts make of tokens: a part of the sum that the mixture is."""

    def __call__(
        self,
        arrays: Mapping[str, Array],
        first: Int[Array, ""],
        adds_last_bias: Bool[Array, ""],
        x: Float[Array, "T E"],
        chosen: Float[Array, "T C"],
        experts: Int[Array, "T C"],
    ) -> Float[Array, "T E"]:
        """The sum over the experts from number ``first`` on, which ``arrays`` holds."""
        ...


class OverExperts(Protocol):
    """Runs a function where the experts are, and adds up what it returns."""

    def __call__(
        self, function: ExpertsFunction, arrays: Mapping[str, Array], operands: tuple[Array, ...]
    ) -> Float[Array, "T E"]:
        """The sum; ``arrays`` are a layer's, by the names of ``models.tensors.EXPERTS``."""
        ...


def on_one_device(
    function: ExpertsFunction, arrays: Mapping[str, Array], operands: tuple[Array, ...]
) -> Float[Array, "T E"]:
    """An OverExperts where one device has all of them."""
    return function(arrays, jnp.int32(0), jnp.bool_(True), *operands)


def mixture(
    config: ModelConfig,
    weights: LayerWeights,
    x: Float[Array, "T E"],
    over_experts: OverExperts = on_one_device,
) -> Float[Array, "T E"]:
    """The chosen experts' results, weighted and summed, and those of the shared expert.

    Padding is routed as tokens are.
    """
    moe = config.moe
    assert moe is not None, "a mixture needs a description of its experts"
    (logits,) = weights.product(("router",), x)
    if moe.has_router_bias:
        logits = logits + weights.vector("router_bias")[None]
    function = partial(_experts_sum, config, moe)

    def run(arrays: Mapping[str, Array], *operands: Array) -> Float[Array, "T E"]:
        return over_experts(function, arrays, operands)

    total = weights.with_experts(run, x, *route(logits, moe))
    if moe.shared_intermediate_size is None:
        return total
    return total + _shared(config, moe, weights, x)


def _experts_sum(
    config: ModelConfig,
    moe: MoeConfig,
    arrays: Mapping[str, Array],
    first: Int[Array, ""],
    adds_last_bias: Bool[Array, ""],
    x: Float[Array, "T E"],
    chosen: Float[Array, "T C"],
    experts: Int[Array, "T C"],
) -> Float[Array, "T E"]:
    """An ExpertsFunction: each expert's feed-forward over all tokens, scaled by its share in them.

    Unchosen experts have a share of 0. Every expert's weights are read once, which is what a step
    of decodes waits for, and the shapes are the same whoever is chosen. ``lax.ragged_dot``, which
    promises less, is expanded by XLA on GPUs and CPUs alike to a product of every expert with every
    token as often as the token chose an expert.
    """
    numbers = first + jnp.arange(arrays["expert_up"].shape[0], dtype=jnp.int32)
    is_chosen = experts[None] == numbers[:, None, None]
    shares = jnp.where(is_chosen, chosen[None], 0).sum(-1)[..., None]

    def product(name: str) -> Float[Array, "X T F"]:
        each = jnp.broadcast_to(x[None], (len(numbers), *x.shape))
        found = jnp.einsum("xte,xef->xtf", each, arrays[name])
        return found + arrays[f"{name}_bias"][:, None] if moe.has_expert_biases else found

    inner = activate(config.mlp, product("expert_gate"), product("expert_up"))
    # What an expert makes of a token that isn't its own may be infinite.
    scaled = jnp.where(shares > 0, inner.astype(jnp.float32) * shares, 0).astype(x.dtype)
    total = jnp.einsum("xtf,xfe->te", scaled, arrays["expert_down"])
    if moe.has_expert_biases:
        bias = shares[..., 0].T @ arrays["expert_down_bias"].astype(jnp.float32)
        total = total + jnp.where(adds_last_bias, bias, 0).astype(x.dtype)
    return total


def _shared(
    config: ModelConfig, moe: MoeConfig, weights: LayerWeights, x: Float[Array, "T E"]
) -> Float[Array, "T E"]:
    (shared,) = weights.product(
        ("shared_down",), inner(config, weights, x, norm=None, prefix="shared_")
    )
    if not moe.has_shared_gate:
        return shared
    gate = x.astype(jnp.float32) @ weights.vector("shared_router").astype(jnp.float32)
    return (jax.nn.sigmoid(gate)[:, None] * shared.astype(jnp.float32)).astype(x.dtype)
