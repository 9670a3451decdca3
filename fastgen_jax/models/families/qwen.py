"""Qwen 2, 2.5 and 3: Llama's decoder with biases of q, k and v, or with norms of q and k."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.families.gguf_models import (
    plain_weights,
    qwen2_from_gguf,
    qwen3_from_gguf,
)
from fastgen_jax.models.families.hf import FULL, SLIDING, HfDescription, layers_of_kinds
from fastgen_jax.models.families.llama import (
    ATTENTION_BIASES,
    HF_NAMES,
    OLD_FREQUENCIES,
    hf_weights,
)
from fastgen_jax.models.families.parts import with_head_norms
from fastgen_jax.models.families.tensor_names import Names, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, WeightMap

QK_NORM_NAMES: Names = {
    "q_norm": "model.layers.{layer}.self_attn.q_norm",
    "k_norm": "model.layers.{layer}.self_attn.k_norm",
}


def qwen2_family() -> ModelFamily:
    """Return the description of Qwen 2 and 2.5."""
    return ModelFamily(
        architecture="Qwen2ForCausalLM",
        title="Qwen 2, Qwen 2.5",
        gguf_architecture="qwen2",
        config_from_hf=_qwen2,
        config_from_gguf=qwen2_from_gguf,
        hf_weights=hf_weights,
        gguf_weights=plain_weights,
    )


def qwen3_family() -> ModelFamily:
    """Return the description of Qwen 3."""
    return ModelFamily(
        architecture="Qwen3ForCausalLM",
        title="Qwen 3",
        gguf_architecture="qwen3",
        config_from_hf=_qwen3,
        config_from_gguf=qwen3_from_gguf,
        hf_weights=qwen3_weights,
        gguf_weights=plain_weights,
    )


def qwen3_weights(config: ModelConfig) -> WeightMap:
    """Return where the tensors lie that go by Llama's names, with norms of q and k."""
    names = {**HF_NAMES, **QK_NORM_NAMES}
    return weight_map(config, names, harmless=OLD_FREQUENCIES, tied=("lm_head.weight",))


def with_windows(fields: HfDescription, config: ModelConfig) -> ModelConfig:
    """The model with windows from ``max_window_layers`` on, or where ``layer_types`` says so."""
    window = fields.window(4096) if fields.flag("use_sliding_window", False) else None
    fields.get("sliding_window")
    first = fields.integer("max_window_layers", 28, minimum=0)
    default = [
        SLIDING if window is not None and index >= first else FULL
        for index in range(config.num_layers)
    ]
    kinds = fields.layer_kinds(config.num_layers, default)
    return replace(config, layers=layers_of_kinds(kinds, window))


def _qwen2(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription(config, generation)
    result = with_windows(fields, fields.llama_like("Qwen2ForCausalLM", "qwen2"))
    mlp = replace(result.mlp, activation=fields.activation(default="silu"))
    return fields.finish(replace(result, biases=("q", "k", "v"), mlp=mlp))


def _qwen3(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription(config, generation)
    result = fields.llama_like("Qwen3ForCausalLM", "qwen3", head_dim=128)
    result = with_head_norms(with_windows(fields, result))
    biases = ATTENTION_BIASES if fields.flag("attention_bias", False) else ()
    mlp = replace(result.mlp, activation=fields.activation(default="silu"))
    return fields.finish(replace(result, biases=biases, mlp=mlp))
