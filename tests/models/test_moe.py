"""Routing, and the mixture against a loop over tokens and experts."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.models.activations import activate
from fastgen_jax.models.config import ClampedGate, MlpConfig, ModelConfig, MoeConfig, llama_config
from fastgen_jax.models.dense import DenseWeights
from fastgen_jax.models.families.parts import all_sparse, mixture_of
from fastgen_jax.models.moe import mixture, route
from fastgen_jax.models.tensors import tensor_shapes

LOGITS = np.array([[0.0, 2.0, 1.0, -1.0], [3.0, 0.5, 0.4, 0.3]])
PLAIN = mixture_of(4, 2, 6)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("softmax_first", [True, False])
@pytest.mark.parametrize("normalizes", [True, False])
def test_tokens_go_to_the_most_likely_experts(softmax_first: bool, normalizes: bool) -> None:
    config = replace(PLAIN, softmax_first=softmax_first, normalizes_chosen=normalizes)
    weights, experts = route(jnp.asarray(LOGITS, jnp.bfloat16), config)
    assert weights.dtype == jnp.float32
    assert experts.tolist() == [[1, 2], [0, 1]]
    rounded = np.asarray(jnp.asarray(LOGITS, jnp.bfloat16), np.float64)
    chosen = np.take_along_axis(rounded, np.asarray(experts), -1)
    expected = np.take_along_axis(softmax(rounded), np.asarray(experts), -1)
    if normalizes or not softmax_first:
        expected = softmax(chosen)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def tiny(moe: MoeConfig) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    model = llama_config(
        vocab_size=5,
        hidden_size=8,
        intermediate_size=10,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        max_position_embeddings=8,
        rms_norm_eps=1e-5,
        rope_theta=10.0,
        tie_word_embeddings=True,
    )
    config = all_sparse(replace(model, moe=moe))
    rng = np.random.default_rng(3)
    arrays = {name: rng.normal(size=shape) for name, shape in tensor_shapes(config).items()}
    return config, arrays


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("has_shared", [False, True])
@pytest.mark.parametrize("has_biases", [False, True])
def test_mixture_is_the_weighted_sum_of_its_experts(has_shared: bool, has_biases: bool) -> None:
    moe = replace(
        PLAIN,
        shared_intermediate_size=7 if has_shared else None,
        has_shared_gate=has_shared,
        has_router_bias=has_biases,
        has_expert_biases=has_biases,
    )
    config, arrays = tiny(moe)
    dense = DenseWeights({name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()})
    w = {name.removeprefix("layers.0."): array for name, array in arrays.items()}
    x = np.random.default_rng(4).normal(size=(9, 8))

    def bias(name: str, expert: int) -> np.ndarray | float:
        return w[f"{name}_bias"][expert] if has_biases else 0.0

    def one(expert: int, row: np.ndarray) -> np.ndarray:
        gate = row @ w["expert_gate"][expert] + bias("expert_gate", expert)
        up = row @ w["expert_up"][expert] + bias("expert_up", expert)
        return silu(gate) * up @ w["expert_down"][expert] + bias("expert_down", expert)

    expected = np.zeros_like(x)
    for index, row in enumerate(x):
        logits = row @ w["router"] + (w["router_bias"] if has_biases else 0)
        chosen = np.argsort(-logits)[:2]
        for weight, expert in zip(softmax(logits[chosen]), chosen, strict=True):
            expected[index] += weight * one(int(expert), row)
        if has_shared:
            shared = silu(row @ w["shared_gate"]) * (row @ w["shared_up"]) @ w["shared_down"]
            expected[index] += shared / (1 + np.exp(-row @ w["shared_router"]))
    layer = dense.layers(config, range(1), jnp.int32(9), unrolled=True)(0)
    found = mixture(config, layer, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_what_unchosen_experts_make_of_a_token_doesnt_count_even_if_infinite() -> None:
    config, arrays = tiny(PLAIN)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(9, 8)), jnp.float32)
    logits = np.asarray(x) @ arrays["layers.0.router"]
    unused = [expert for expert in range(4) if expert not in np.argsort(-logits[0])[:2]]
    sick = dict(arrays)
    sick["layers.0.expert_up"] = arrays["layers.0.expert_up"].copy()
    sick["layers.0.expert_up"][unused] = np.inf
    found = [
        mixture(
            config, DenseWeights(named).layers(config, range(1), jnp.int32(9), unrolled=True)(0), x
        )
        for named in (
            {name: jnp.asarray(array, jnp.float32) for name, array in weights.items()}
            for weights in (arrays, sick)
        )
    ]
    assert not np.isfinite(found[1]).all()  # other tokens chose them
    np.testing.assert_array_equal(found[1][0], found[0][0])


def test_each_expert_is_computed_once_for_a_token_however_many_it_chooses() -> None:
    config, arrays = tiny(PLAIN)
    weights = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}

    def run(x: jnp.ndarray) -> jnp.ndarray:
        dense = DenseWeights(weights)
        return mixture(config, dense.layers(config, range(1), jnp.int32(9), unrolled=True)(0), x)

    def products(tokens: int) -> float:
        cost = jax.jit(run).lower(jnp.zeros((tokens, 8), jnp.float32)).cost_analysis()
        assert cost is not None
        return cost["flops"]

    of_experts = 2 * 3 * 4 * 8 * 6  # three products, four experts, E x F
    of_a_token = (products(128) - products(64)) / 64
    assert of_experts < of_a_token < 1.6 * of_experts


def test_a_clamped_gate_is_clamped() -> None:
    config = MlpConfig(activation=ClampedGate(alpha=1.7, limit=2.0), is_gated=True)
    gate, up = np.array([-9.0, 0.5, 9.0]), np.array([-5.0, 0.3, 5.0])
    found = activate(config, jnp.asarray(gate, jnp.float32), jnp.asarray(up, jnp.float32))
    low, high = np.minimum(gate, 2.0), np.clip(up, -2.0, 2.0)
    expected = (high + 1) * low / (1 + np.exp(-1.7 * low))
    np.testing.assert_allclose(found, expected, atol=1e-5)
