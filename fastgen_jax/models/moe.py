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
    """An ExpertsFunction.

    Rows are sorted by expert, so that each expert's stand together, and behind them those of
    experts elsewhere; how many an expert gets is data, so the shapes are the same for every step.
    """
    count = jnp.int32(arrays["expert_up"].shape[0])
    place = experts.reshape(-1) - first
    place = jnp.where((place >= 0) & (place < count), place, count)
    order = jnp.argsort(place, stable=True)
    expert_of_row = place[order]
    sizes = jnp.bincount(expert_of_row, length=arrays["expert_up"].shape[0]).astype(jnp.int32)

    def product(name: str, rows: Array) -> Array:
        found = lax.ragged_dot(rows, arrays[name], sizes)
        if moe.has_expert_biases:
            bias = arrays[f"{name}_bias"][jnp.minimum(expert_of_row, count - 1)]
            found = found + (bias if name != "expert_down" else jnp.where(adds_last_bias, bias, 0))
        return found

    rows = x[order // moe.top_k]
    gate, up = product("expert_gate", rows), product("expert_up", rows)
    down = product("expert_down", activate(config.mlp, gate, up))
    down = jnp.where((expert_of_row < count)[:, None], down, 0)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype))
    results = down[back].reshape(len(x), moe.top_k, -1).astype(jnp.float32)
    return (results * chosen[..., None]).sum(1).astype(x.dtype)


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
