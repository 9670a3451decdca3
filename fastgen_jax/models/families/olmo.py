"""OLMo-2: norms behind attention and feed-forward, and over all queries and all keys."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import ModelConfig, QueryKeyNorm
from fastgen_jax.models.families.hf import HfDescription
from fastgen_jax.models.families.llama import ATTENTION_BIASES, HF_NAMES
from fastgen_jax.models.families.qwen import QK_NORM_NAMES
from fastgen_jax.models.families.tensor_names import Names, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily

_NAMES: Names = {
    **HF_NAMES,
    **QK_NORM_NAMES,
    "attn_post_norm": "model.layers.{layer}.post_attention_layernorm",
    "mlp_post_norm": "model.layers.{layer}.post_feedforward_layernorm",
}


def olmo2_family() -> ModelFamily:
    """Return the description of OLMo-2."""
    return ModelFamily(
        architecture="Olmo2ForCausalLM",
        title="OLMo 2",
        gguf_architecture=None,
        config_from_hf=_olmo2,
        config_from_gguf=None,
        hf_weights=lambda config: weight_map(config, _NAMES, tied=("lm_head.weight",)),
        gguf_weights=None,
    )


def _olmo2(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"rms_norm_eps": 1e-5, **config}, generation)
    result = fields.llama_like("Olmo2ForCausalLM", "olmo2")
    norm = replace(result.norm, is_wide=True)
    attention = replace(result.attention, query_key_norm=QueryKeyNorm(norm=norm, over="all_heads"))
    result = replace(
        result,
        norm=norm,
        norms=("attn_post_norm", "mlp_post_norm"),
        attention=attention,
        mlp=replace(result.mlp, activation=fields.activation(default="silu")),
        biases=ATTENTION_BIASES if fields.flag("attention_bias", False) else (),
    )
    return fields.finish(result)
