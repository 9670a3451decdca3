"""Configurations as JSON, and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fastgen_jax.models.config import ClampedGate, MlpConfig, ModelConfig, llama_config
from fastgen_jax.models.config_data import config_from_data, config_to_data
from fastgen_jax.models.families.parts import all_sparse, mixture_of, with_head_norms
from fastgen_jax.models.rope_config import LongRopeScaling, RopeConfig

LLAMA = llama_config(
    vocab_size=5,
    hidden_size=8,
    intermediate_size=10,
    num_layers=2,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    max_position_embeddings=8,
    rms_norm_eps=1e-5,
    rope_theta=10.0,
    tie_word_embeddings=True,
    eos_token_ids=(1, 2),
)
LONG = LongRopeScaling(
    short_factors=(1.0, 2.0), long_factors=(3.0, 4.0), original_length=4, attention_factor=1.1
)
RICH = all_sparse(
    replace(
        with_head_norms(LLAMA),
        moe=mixture_of(4, 2, 6),
        mlp=MlpConfig(activation=ClampedGate(alpha=1.7, limit=7.0), is_gated=True),
        ropes=(RopeConfig(theta=3.0, rotary_dim=4, scaling=LONG),),
        biases=("q", "o"),
    )
)


@pytest.mark.parametrize("config", [LLAMA, RICH], ids=["llama", "rich"])
def test_what_is_written_is_read(config: ModelConfig) -> None:
    text = json.dumps(config_to_data(config))
    assert config_from_data(json.loads(text)) == config


def test_other_data_are_refused() -> None:
    data = config_to_data(LLAMA)
    with pytest.raises(ValueError, match="NormConfig, not a ModelConfig"):
        config_from_data(data["norm"])
    with pytest.raises(ValueError, match="kind of object"):
        config_from_data({"vocab_size": 3})
    with pytest.raises(ValueError, match="mystery"):
        config_from_data(data | {"mystery": 1})
