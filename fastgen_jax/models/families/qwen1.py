"""Qwen 1, whose files were made for code that came with them: Qwen 2 under other names.

Beyond the length of training (``seq_length``) that code changes the rotary base and scales queries
by the logarithm of the length; a text here is at most so long, where neither does anything.
"""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.families.hf import HfDescription
from fastgen_jax.models.families.parts import parts_below_each_other
from fastgen_jax.models.families.tensor_names import Names, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, WeightMap

_UNUSED = frozenset(
    (
        "attn_dropout_prob",
        "auto_map",
        "bf16",
        "emb_dropout_prob",
        "fp16",
        "fp32",
        "onnx_safe",
        "softmax_in_fp32",
        "use_cache_kernel",
        "use_cache_quantization",
        "use_dynamic_ntk",
        "use_flash_attn",
        "use_logn_attn",
    )
)
_USUAL = {
    "kv_channels": "head_dim",
    "layer_norm_epsilon": "rms_norm_eps",
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
}


def qwen_family() -> ModelFamily:
    """Return the description of Qwen 1."""
    return ModelFamily(
        architecture="QWenLMHeadModel",
        title="Qwen 1",
        limits=(
            "texts up to seq_length, the length of training",
            "transformers has no Qwen 1: held equal to Qwen 2 with the same weights",
        ),
        gguf_architecture=None,
        config_from_hf=_qwen,
        config_from_gguf=None,
        hf_weights=_weights,
        gguf_weights=None,
    )


def _qwen(config: JsonObject, generation: JsonObject) -> ModelConfig:
    usual = {_USUAL.get(name, name): value for name, value in config.items()}
    fields = HfDescription({"seq_length": 2048, **usual}, generation)
    result = fields.llama_like("QWenLMHeadModel", "qwen", max_length="seq_length")
    fields.get("max_position_embeddings")
    fields.require("no_bias", (True,), "biases in every product")
    fields.require("scale_attn_weights", (True,), "another attention scale")
    # The description counts both halves of what goes into the last product.
    inner = result.intermediate_size // 2
    return fields.finish(
        replace(result, intermediate_size=inner, biases=("q", "k", "v")), harmless=_UNUSED
    )


def _weights(config: ModelConfig) -> WeightMap:
    layer, heads = "transformer.h.{layer}.", config.num_heads * config.head_dim
    names: Names = {
        "embed": "transformer.wte",
        "attn_norm": layer + "ln_1",
        **parts_below_each_other(layer + "attn.c_attn", {"q": heads, "k": heads, "v": heads}),
        "o": layer + "attn.c_proj",
        "mlp_norm": layer + "ln_2",
        "gate": layer + "mlp.w2",
        "up": layer + "mlp.w1",
        "down": layer + "mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    }
    return weight_map(config, names, harmless=r"transformer\.(h\.\d+\.attn\.)?rotary_emb\.inv_freq")
