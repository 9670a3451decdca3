"""A mixture of experts: each token goes through a few feed-forwards of many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

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


def mixture(
    config: ModelConfig, weights: LayerWeights, x: Float[Array, "T E"]
) -> Float[Array, "T E"]:
    """The chosen experts' results, weighted and summed, and those of the shared expert.

    Rows are sorted by expert, so that each expert's stand together; how many an expert gets is
    data, so the shapes are the same for every step. Padding is routed as tokens are.
    """
    moe = config.moe
    assert moe is not None, "a mixture needs a description of its experts"
    (logits,) = weights.product(("router",), x)
    if moe.has_router_bias:
        logits = logits + weights.vector("router_bias")[None]
    chosen, experts = route(logits, moe)
    order = jnp.argsort(experts.reshape(-1), stable=True)
    expert_of_row = experts.reshape(-1)[order]
    sizes = jnp.bincount(expert_of_row, length=moe.num_experts).astype(jnp.int32)

    def product(name: str, rows: Array) -> Array:
        found = weights.expert_product(name, rows, sizes)
        if moe.has_expert_biases:
            found = found + weights.vector(f"{name}_bias")[expert_of_row]
        return found

    rows = x[order // moe.top_k]
    gate, up = product("expert_gate", rows), product("expert_up", rows)
    down = product("expert_down", activate(config.mlp, gate, up))
    back = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype))
    results = down[back].reshape(len(x), moe.top_k, -1).astype(jnp.float32)
    total = (results * chosen[..., None]).sum(1).astype(x.dtype)
    if moe.shared_intermediate_size is None:
        return total
    return total + _shared(config, moe, weights, x)


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
