"""Llama, Mistral and SmolLM3: the same decoder, with windows or layers that don't rotate."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import LayerConfig, ModelConfig
from fastgen_jax.models.families.gguf_models import llama_from_gguf, llama_weights
from fastgen_jax.models.families.hf import SLIDING, HfDescription, uniform_layers
from fastgen_jax.models.families.tensor_names import Names, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, WeightMap

HF_NAMES: Names = {
    "embed": "model.embed_tokens",
    "attn_norm": "model.layers.{layer}.input_layernorm",
    "q": "model.layers.{layer}.self_attn.q_proj",
    "k": "model.layers.{layer}.self_attn.k_proj",
    "v": "model.layers.{layer}.self_attn.v_proj",
    "o": "model.layers.{layer}.self_attn.o_proj",
    "mlp_norm": "model.layers.{layer}.post_attention_layernorm",
    "gate": "model.layers.{layer}.mlp.gate_proj",
    "up": "model.layers.{layer}.mlp.up_proj",
    "down": "model.layers.{layer}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
# Old exports keep the rotary frequencies, which follow from the configuration.
OLD_FREQUENCIES = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"

ATTENTION_BIASES = ("q", "k", "v", "o")
MLP_BIASES = ("gate", "up", "down")


def hf_weights(config: ModelConfig) -> WeightMap:
    """Return where the tensors lie that go by Llama's names."""
    return weight_map(config, HF_NAMES, harmless=OLD_FREQUENCIES, tied=("lm_head.weight",))


def llama_family() -> ModelFamily:
    """Return the description of Llama 1 to 3, SmolLM and SmolLM2."""
    return ModelFamily(
        architecture="LlamaForCausalLM",
        title="Llama 1 to 3, SmolLM, SmolLM2",
        gguf_architecture="llama",
        config_from_hf=_llama,
        config_from_gguf=llama_from_gguf,
        hf_weights=hf_weights,
        gguf_weights=llama_weights,
    )


def mistral_family() -> ModelFamily:
    """Return the description of Mistral."""
    return ModelFamily(
        architecture="MistralForCausalLM",
        title="Mistral, Mistral Nemo",
        gguf_architecture=None,  # such files call themselves llama
        config_from_hf=_mistral,
        config_from_gguf=None,
        hf_weights=hf_weights,
        gguf_weights=None,
    )


def smollm3_family() -> ModelFamily:
    """Return the description of SmolLM3, where some layers don't rotate."""
    return ModelFamily(
        architecture="SmolLM3ForCausalLM",
        title="SmolLM3",
        gguf_architecture=None,
        config_from_hf=_smollm3,
        config_from_gguf=None,
        hf_weights=hf_weights,
        gguf_weights=None,
    )


def _llama(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription(config, generation)
    result = _with_biases(fields, fields.llama_like("LlamaForCausalLM", "llama"))
    return fields.finish(result)


def _mistral(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription(config, generation)
    result = fields.llama_like("MistralForCausalLM", "mistral")
    layers = uniform_layers(result.num_layers, window=fields.window(4096))
    fields.get("layer_types")  # Mistral's layers have the window whatever it says
    mlp = replace(result.mlp, activation=fields.activation(default="silu"))
    return fields.finish(replace(result, layers=layers, mlp=mlp))


def _smollm3(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription(config, generation)
    result = fields.llama_like("SmolLM3ForCausalLM", "smollm3", rope_theta=2_000_000.0)
    if "tie_word_embeddings" not in config:
        result = replace(result, tie_word_embeddings=True)
    count = result.num_layers
    interval = fields.integer("no_rope_layer_interval", 4)
    stated = fields.items("no_rope_layers")
    rotates = [(i + 1) % interval != 0 for i in range(count)] if stated is None else stated
    window = fields.window() if fields.flag("use_sliding_window", False) else None
    fields.get("sliding_window")
    default = ["full_attention" if window is None or has_rope else SLIDING for has_rope in rotates]
    kinds = fields.layer_kinds(count, default)
    layers = tuple(
        LayerConfig(
            window=window if kind == SLIDING else None,
            rope=0 if has_rope else None,
            is_sparse=False,
        )
        for kind, has_rope in zip(kinds, rotates, strict=True)
    )
    result = _with_biases(fields, replace(result, layers=layers))
    return fields.finish(result, harmless=("max_window_layers",))


def _with_biases(fields: HfDescription, config: ModelConfig) -> ModelConfig:
    biases: tuple[str, ...] = ()
    if fields.flag("attention_bias", False):
        biases += ATTENTION_BIASES
    if fields.flag("mlp_bias", False):
        biases += MLP_BIASES
    mlp = replace(config.mlp, activation=fields.activation(default="silu"))
    return replace(config, biases=biases, mlp=mlp)
