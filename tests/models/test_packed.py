"""The decoder with packed weights computes what it computes with dense ones."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.models.config import ModelConfig, llama_config
from fastgen_jax.models.decoder import Decoder, dense_logits
from fastgen_jax.models.weights.packing import choose_packing
from fastgen_jax.runtime.weights import (
    DenseSource,
    PackedSource,
    num_bytes,
    random_stacks,
    random_tensors,
)
from pallas_kernels.linear import LinearConfig, LinearNative, LinearReference
from pallas_kernels.native import native_obstacle

# Sums of up to 96 float32 products in another order, through two layers.
TOLERANCE = 2e-4
TOKENS = jnp.asarray([3, 99, 0, 41, 41, 7, 12], jnp.int32)

needs_native = pytest.mark.skipif(native_obstacle() is not None, reason=str(native_obstacle()))
LINEAR = [
    pytest.param(LinearReference(), id="reference"),
    pytest.param(LinearNative(), id="native", marks=needs_native),
]


def model_config(*, tied: bool) -> ModelConfig:
    return llama_config(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
    )


def packed_source(
    model: ModelConfig, linear: LinearConfig, *, dtype: str, quantization: str | None
) -> PackedSource:
    packing = choose_packing(model, dtype=dtype, quantization=quantization)
    return PackedSource(
        model=model, packing=packing, linear=linear, stacks=random_stacks(model, packing, seed=5)
    )


def dense_source(model: ModelConfig, dtype: str) -> DenseSource:
    return DenseSource(model=model, dtype=dtype, tensors=random_tensors(model, seed=5))


def ignore(size: int) -> None:
    """Nobody watches."""


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("linear", LINEAR)
def test_float32_gives_the_same_logits(linear: LinearConfig, tied: bool) -> None:
    model = model_config(tied=tied)
    dense = Decoder(model, dense_source(model, "float32").load(ignore))
    packed = Decoder(
        model, packed_source(model, linear, dtype="float32", quantization=None).load(ignore)
    )
    expected = dense_logits(dense, TOKENS)
    found = jax.jit(dense_logits)(packed, TOKENS)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert np.abs(np.asarray(expected)).max() > 50 * TOLERANCE


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.02), ("int4", 0.25)])
def test_quantized_weights_stay_close(linear: LinearConfig, quantization: str, most: float) -> None:
    model = model_config(tied=True)
    dense = Decoder(model, dense_source(model, "float32").load(ignore))
    source = packed_source(model, linear, dtype="float32", quantization=quantization)
    expected = np.asarray(dense_logits(dense, TOKENS))
    found = np.asarray(jax.jit(dense_logits)(Decoder(model, source.load(ignore)), TOKENS))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < most


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_the_shapes_are_known_before_reading(quantization: str | None) -> None:
    model = model_config(tied=False)
    source = packed_source(model, LinearReference(), dtype="bfloat16", quantization=quantization)
    heard: list[int] = []
    abstract, loaded = source.abstract(), source.load(heard.append)
    assert jax.tree.structure(abstract) == jax.tree.structure(loaded)
    for shape, array in zip(jax.tree.leaves(abstract), jax.tree.leaves(loaded), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
    assert sum(heard) == num_bytes(abstract)


def test_dense_shapes_are_known_before_reading() -> None:
    model = model_config(tied=False)
    source = dense_source(model, "bfloat16")
    abstract, loaded = source.abstract(), source.load(ignore)
    described = partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert described(abstract) == described(loaded)
