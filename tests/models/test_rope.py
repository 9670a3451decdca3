"""Tables of rotary embeddings, against their formulas in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.models.rope import apply_rope, rope_tables, stacked_tables
from fastgen_jax.models.rope_config import (
    DynamicNtkScaling,
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

POSITIONS = jnp.asarray([0, 1, 7, 40], jnp.int32)
THETA, SIZE = 700.0, 16
PLAIN = THETA ** -(np.arange(0, SIZE, 2) / SIZE)
TOLERANCE = 1e-5


def rope(scaling: RopeScaling | None) -> RopeConfig:
    return RopeConfig(theta=THETA, rotary_dim=SIZE, scaling=scaling)


def assert_tables(
    found: tuple[object, object], frequencies: np.ndarray, factor: float = 1.0
) -> None:
    angles = np.asarray(POSITIONS)[:, None] * frequencies
    for table, expected in zip(found, (np.cos(angles), np.sin(angles)), strict=True):
        np.testing.assert_allclose(np.asarray(table), expected * factor, atol=TOLERANCE)


def test_plain_linear_and_given_frequencies() -> None:
    assert_tables(rope_tables(POSITIONS, rope(None)), PLAIN)
    assert_tables(rope_tables(POSITIONS, rope(LinearScaling(factor=4.0))), PLAIN / 4)
    factors = tuple(1.0 + i for i in range(8))
    found = rope_tables(POSITIONS, rope(FrequencyFactors(factors=factors)))
    assert_tables(found, PLAIN / np.array(factors))


def test_llama3_keeps_blends_and_divides() -> None:
    scaling = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64
    )
    turns = 64 * PLAIN / (2 * np.pi)  # within the original length
    share = np.clip((turns - 1) / (4 - 1), 0, 1)
    assert {0.0, 1.0} < set(share)  # all three cases are there
    expected = share * PLAIN + (1 - share) * PLAIN / 8
    assert_tables(rope_tables(POSITIONS, rope(scaling)), expected)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_ramps_between_pairs(truncate: bool) -> None:
    scaling = YarnScaling(
        factor=4.0,
        original_length=32,
        beta_fast=3.0,
        beta_slow=0.25,
        attention_factor=1.5,
        truncate=truncate,
    )
    first, last = (
        SIZE * np.log(32 / (turns * 2 * np.pi)) / (2 * np.log(THETA)) for turns in (3.0, 0.25)
    )
    if truncate:
        first, last = np.floor(first), np.ceil(last)
    slow = np.clip((np.arange(8) - max(first, 0)) / (last - max(first, 0)), 0, 1)
    assert 0 < slow[1] < slow[2] < 1  # the ramp has pairs on it
    expected = PLAIN * (1 - slow) + PLAIN / 4 * slow
    assert_tables(rope_tables(POSITIONS, rope(scaling)), expected, 1.5)


def test_longrope_changes_its_divisors_with_the_length() -> None:
    short, long = (tuple(1 + scale * i for i in range(8)) for scale in (0.1, 0.5))
    scaling = LongRopeScaling(
        short_factors=short, long_factors=long, original_length=48, attention_factor=1.2
    )
    for length, factors in ((48, short), (49, long)):
        lengths = jnp.full(4, length, jnp.int32)
        found = rope_tables(POSITIONS, rope(scaling), lengths)
        assert_tables(found, PLAIN / np.array(factors), 1.2)


def test_dynamic_base_grows_once_the_text_is_longer() -> None:
    scaling = DynamicNtkScaling(factor=4.0, original_length=32)
    for length in (5, 32, 33, 100):
        growth = 4 * max(length, 32) / 32 - 3
        base = THETA * growth ** (SIZE / (SIZE - 2))
        lengths = jnp.full(4, length, jnp.int32)
        found = rope_tables(POSITIONS, rope(scaling), lengths)
        assert_tables(found, base ** -(np.arange(0, SIZE, 2) / SIZE))
    assert growth > 1


def test_what_depends_on_the_length_asks_for_it() -> None:
    config = rope(DynamicNtkScaling(factor=4.0, original_length=32))
    assert config.depends_on_length
    assert not rope(LinearScaling(factor=2.0)).depends_on_length
    with pytest.raises(ValueError, match="lengths"):
        rope_tables(POSITIONS, config)


def test_numbers_behind_the_rotated_ones_pass_through() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 24)), jnp.float32)
    cos, sin = rope_tables(POSITIONS, rope(None))
    rotated = np.asarray(apply_rope(x, (cos, sin)))
    np.testing.assert_array_equal(rotated[..., 16:], x[..., 16:])
    np.testing.assert_array_equal(rotated[0], x[0])  # position 0 doesn't turn
    pairs = np.asarray(x[..., :8]) + 1j * np.asarray(x[..., 8:16])
    turned = pairs * (np.asarray(cos) + 1j * np.asarray(sin))[:, None]
    np.testing.assert_allclose(rotated[..., :8], turned.real, atol=TOLERANCE)
    np.testing.assert_allclose(rotated[..., 8:16], turned.imag, atol=TOLERANCE)


def test_stacked_tables_end_with_one_that_turns_nothing() -> None:
    ropes = [rope(None), rope(LinearScaling(factor=2.0))]
    cos, sin = stacked_tables(POSITIONS, ropes, None, with_identity=True)
    assert cos.shape == sin.shape == (3, 4, 8)
    assert_tables((cos[1], sin[1]), PLAIN / 2)
    np.testing.assert_array_equal(cos[2], 1)
    np.testing.assert_array_equal(sin[2], 0)
