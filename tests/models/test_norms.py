"""Norms, against their formulas in float64."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.models.config import NormConfig, QueryKeyNorm, rms_norm
from fastgen_jax.models.norms import normalize, normalize_heads

RNG = np.random.default_rng(1)
X = RNG.normal(1.0, 2.0, (5, 12))
SCALE, BIAS = RNG.normal(size=12), RNG.normal(size=12)
EPSILON = 0.03
LAYER = NormConfig(kind="layer", epsilon=EPSILON, has_scale=True, has_bias=True, is_wide=False)


def as_jax(values: np.ndarray, dtype: str = "float32") -> jnp.ndarray:
    return jnp.asarray(values, dtype)


def unit(x: np.ndarray, *, centered: bool) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True) if centered else x
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)


def test_rms_norm_scales_to_unit_mean_square() -> None:
    found = normalize(as_jax(X), rms_norm(EPSILON), as_jax(SCALE), None)
    np.testing.assert_allclose(found, unit(X, centered=False) * SCALE, atol=1e-5)


def test_layer_norm_also_subtracts_the_mean() -> None:
    found = normalize(as_jax(X), LAYER, as_jax(SCALE), as_jax(BIAS))
    np.testing.assert_allclose(found, unit(X, centered=True) * SCALE + BIAS, atol=1e-5)
    bare = normalize(as_jax(X), replace(LAYER, has_scale=False, has_bias=False), None, None)
    np.testing.assert_allclose(bare, unit(X, centered=True), atol=1e-5)


def test_a_wide_norm_rounds_once() -> None:
    x, scale = as_jax(X, "bfloat16"), as_jax(SCALE)
    wide = normalize(x, replace(rms_norm(EPSILON), is_wide=True), scale, None)
    exact = unit(np.asarray(x, np.float64), centered=False) * SCALE
    np.testing.assert_array_equal(wide, as_jax(exact, "bfloat16"))
    narrow = normalize(x, rms_norm(EPSILON), scale, None)
    assert wide.dtype == narrow.dtype == jnp.bfloat16
    assert (np.asarray(wide) != np.asarray(narrow)).any()


@pytest.mark.parametrize("over", ["head", "each_head", "all_heads"])
def test_heads_are_normalized_alone_or_together(over: str) -> None:
    heads = X.reshape(5, 3, 4)
    size = 4 if over == "head" else 12
    config = QueryKeyNorm(norm=rms_norm(EPSILON), over=over)  # type: ignore[arg-type]
    found = normalize_heads(as_jax(heads), config, as_jax(SCALE[:size]), None)
    if over == "all_heads":
        expected = (unit(X, centered=False) * SCALE).reshape(5, 3, 4)
    else:
        expected = unit(heads, centered=False) * SCALE[:size].reshape(-1, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
