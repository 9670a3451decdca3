"""Rotary embeddings from config.json: every kind, and every way of stating it."""

from __future__ import annotations

import math

import pytest

from fastgen_jax.errors import CheckpointError, UnsupportedModelError
from fastgen_jax.models.families.hf_rope import read_rope
from fastgen_jax.models.rope_config import (
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)
from fastgen_jax.models.weights.fields import Fields


def read(**config: object) -> RopeConfig:
    fields = Fields(config, where="config.json")
    return read_rope(fields, head_dim=8, max_length=64, theta=100.0, rotary_share=1.0)


def test_what_isnt_stated_is_the_familys() -> None:
    assert read() == RopeConfig(theta=100.0, rotary_dim=8, scaling=None)


@pytest.mark.parametrize("group", ["rope_scaling", "rope_parameters"])
def test_base_and_share_may_stand_in_either_place(group: str) -> None:
    inside = {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5}
    expected = RopeConfig(theta=5.0, rotary_dim=4, scaling=None)
    assert read(rope_theta=5.0, partial_rotary_factor=0.5) == expected
    assert read(**{group: inside}) == expected
    assert read(**{group: inside}, rope_theta=5.0) == expected
    with pytest.raises(CheckpointError, match="stated twice"):
        read(**{group: inside}, rope_theta=6.0)
    with pytest.raises(CheckpointError, match="stated twice"):
        read(**{group: inside}, partial_rotary_factor=0.25)


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_kinds_of_scaling(key: str) -> None:
    def scaling(kind: str, **values: object) -> object:
        return read(rope_scaling={key: kind} | values).scaling

    assert scaling("linear", factor=2) == LinearScaling(factor=2.0)
    assert scaling("dynamic", factor=3.0) == DynamicNtkScaling(factor=3.0, original_length=64)
    llama = {"low_freq_factor": 1, "high_freq_factor": 4, "factor": 8}
    assert scaling("llama3", **llama, original_max_position_embeddings=32) == Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=32
    )
    yarn = YarnScaling(
        factor=4.0,
        original_length=16,
        beta_fast=32.0,
        beta_slow=1.0,
        attention_factor=0.1 * math.log(4) + 1,
        truncate=True,
    )
    assert scaling("yarn", original_max_position_embeddings=16) == yarn
    assert scaling("longrope", short_factor=[1, 2], long_factor=[3, 4.5]) == LongRopeScaling(
        short_factors=(1.0, 2.0),
        long_factors=(3.0, 4.5),
        original_length=64,
        attention_factor=1.0,
    )


def test_length_of_training_beside_the_group_counts() -> None:
    rope = read(
        rope_scaling={"type": "longrope", "short_factor": [1], "long_factor": [2]},
        original_max_position_embeddings=16,
    )
    assert isinstance(rope.scaling, LongRopeScaling)
    assert rope.scaling.original_length == 16
    assert rope.scaling.attention_factor == math.sqrt(1 + math.log(4) / math.log(16))


@pytest.mark.parametrize(
    ("group", "field"),
    [
        ({"type": "mrope"}, "rope_scaling.rope_type"),
        ({"type": "linear", "factor": 2, "mystery": 1}, "rope_scaling.mystery"),
        ({"type": "default", "factor": 2}, "rope_scaling.factor"),
    ],
)
def test_what_isnt_understood_is_refused(group: dict[str, object], field: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(rope_scaling=group)
    assert caught.value.field == field


def test_what_is_missing_is_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        read(rope_scaling={"type": "linear"})
    assert caught.value.field == "rope_scaling.factor"
