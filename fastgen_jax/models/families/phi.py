"""Phi-1.5 and Phi-2, where attention and feed-forward stand side by side; Phi-3 and 3.5."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import MlpConfig, ModelConfig, QueryKeyNorm
from fastgen_jax.models.families.gguf_models import phi3_from_gguf, phi3_weights
from fastgen_jax.models.families.hf import HfDescription, layer_norm, uniform_layers
from fastgen_jax.models.families.hf_rope import read_rope
from fastgen_jax.models.families.llama import ATTENTION_BIASES, HF_NAMES, OLD_FREQUENCIES
from fastgen_jax.models.families.parts import fused_rows
from fastgen_jax.models.families.tensor_names import Names, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, WeightMap

_LAYER = "model.layers.{layer}."
_PHI_NAMES: Names = {
    **HF_NAMES,
    "o": _LAYER + "self_attn.dense",
    "q_norm": _LAYER + "self_attn.q_layernorm",
    "k_norm": _LAYER + "self_attn.k_layernorm",
    "up": _LAYER + "mlp.fc1",
    "down": _LAYER + "mlp.fc2",
    "final_norm": "model.final_layernorm",
}


def phi_family() -> ModelFamily:
    """Return the description of Phi-1, 1.5 and 2."""
    return ModelFamily(
        architecture="PhiForCausalLM",
        title="Phi-1, Phi-1.5, Phi-2",
        gguf_architecture=None,
        config_from_hf=_phi,
        config_from_gguf=None,
        hf_weights=lambda config: weight_map(
            config, _PHI_NAMES, harmless=OLD_FREQUENCIES, tied=("lm_head.weight",)
        ),
        gguf_weights=None,
    )


def phi3_family() -> ModelFamily:
    """Return the description of Phi-3, 3.5 and 4-mini, whose products are fused in files."""
    return ModelFamily(
        architecture="Phi3ForCausalLM",
        title="Phi-3, Phi-3.5, Phi-4-mini",
        limits=("a text that outgrows the length of training keeps its cache",),
        gguf_architecture="phi3",
        config_from_hf=_phi3,
        config_from_gguf=phi3_from_gguf,
        hf_weights=_phi3_weights,
        gguf_weights=phi3_weights,
    )


def _phi3_weights(config: ModelConfig) -> WeightMap:
    fused = fused_rows(config, _LAYER + "self_attn.qkv_proj", _LAYER + "mlp.gate_up_proj")
    names = {**HF_NAMES, **fused}
    return weight_map(config, names, harmless=OLD_FREQUENCIES, tied=("lm_head.weight",))


def _phi(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"layer_norm_eps": 1e-5, **config}, generation)
    result = fields.llama_like("PhiForCausalLM", "phi", norm_eps="layer_norm_eps", rotary_share=0.5)
    norm = layer_norm(result.norm.epsilon)
    has_head_norm = fields.flag("qk_layernorm", False)
    head_norm = QueryKeyNorm(norm=norm, over="head") if has_head_norm else None
    result = replace(
        result,
        norm=norm,
        norms=("attn_norm",),
        is_parallel=True,
        attention=replace(result.attention, query_key_norm=head_norm),
        mlp=MlpConfig(activation=fields.activation(default="gelu_new"), is_gated=False),
        biases=(*ATTENTION_BIASES, "up", "down"),
        has_head_bias=True,
    )
    return fields.finish(result)


def _phi3(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription(config, generation)
    result = fields.llama_like("Phi3ForCausalLM", "phi3", has_rope=False)
    rope = read_rope(
        fields,
        head_dim=result.head_dim,
        max_length=result.max_position_embeddings,
        theta=10000.0,
        rotary_share=1.0,
        aliases={"su": "longrope", "yarn": "longrope"},
    )
    fields.get("original_max_position_embeddings")
    layers = uniform_layers(result.num_layers, window=fields.window())
    mlp = replace(result.mlp, activation=fields.activation(default="silu"))
    result = replace(result, layers=layers, ropes=(rope,), mlp=mlp)
    return fields.finish(result, harmless=("auto_map",))
