"""Falcon 7B, 40B, 180B and 11B: side by side branches, and three ways of fusing q, k and v."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import MlpConfig, ModelConfig, NormPlace
from fastgen_jax.models.families.hf import HfDescription, layer_norm
from fastgen_jax.models.families.llama import ATTENTION_BIASES
from fastgen_jax.models.families.tensor_names import Names, Stored, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, Part, WeightMap

_UNUSED = frozenset({"auto_map", "apply_residual_connection_post_layernorm"})


def falcon_family() -> ModelFamily:
    """Return the description of Falcon; those with ALiBi are refused."""
    return ModelFamily(
        architecture="FalconForCausalLM",
        title="Falcon 7B, 40B, 180B and Falcon 2 11B",
        limits=("no ALiBi (Falcon RW)",),
        gguf_architecture=None,
        config_from_hf=_falcon,
        config_from_gguf=None,
        hf_weights=_weights,
        gguf_weights=None,
    )


def _falcon(config: JsonObject, generation: JsonObject) -> ModelConfig:
    defaults = {"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048}
    fields = HfDescription({**defaults, "tie_word_embeddings": True, **_usual(config)}, generation)
    fields.require("alibi", (False,), "a bias of scores by distance (ALiBi)")
    is_new = fields.flag("new_decoder_architecture", False)
    is_shared = fields.flag("multi_query", True) and not is_new
    if is_shared:
        fields.get("num_key_value_heads")
    result = fields.llama_like(
        "FalconForCausalLM", "falcon", norm_eps="layer_norm_epsilon", has_rope=True
    )
    if is_shared:
        result = replace(result, num_kv_heads=1)
    elif not is_new:
        result = replace(result, num_kv_heads=result.num_heads)
    is_parallel = fields.flag("parallel_attn", True) or is_new
    num_norms = fields.integer("num_ln_in_parallel_attn", 2 if is_new else 1)
    norms: tuple[NormPlace, ...] = ("attn_norm", "mlp_norm")
    if is_parallel and num_norms == 1:
        norms = ("attn_norm",)
    has_bias = fields.flag("bias", False)
    result = replace(
        result,
        norm=layer_norm(result.norm.epsilon),
        norms=norms,
        is_parallel=is_parallel,
        mlp=MlpConfig(activation=fields.activation("activation", "gelu"), is_gated=False),
        biases=(*ATTENTION_BIASES, "up", "down") if has_bias else (),
    )
    return fields.finish(result, harmless=_UNUSED)


def _usual(config: JsonObject) -> JsonObject:
    """The description under usual names, of which Falcon has some others."""
    names = {
        "num_kv_heads": "num_key_value_heads",
        "ffn_hidden_size": "intermediate_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_head_kv": "num_key_value_heads",
        "n_embed": "hidden_size",
    }
    usual = {names.get(name, name): value for name, value in config.items()}
    width = usual.get("hidden_size")
    if usual.get("intermediate_size") is None and isinstance(width, int):
        usual["intermediate_size"] = 4 * width
    return usual


def _weights(config: ModelConfig) -> WeightMap:
    layer, head_dim = "transformer.h.{layer}.", config.head_dim
    # For every kv head its query heads, then its key, then its value.
    queries = config.num_heads // config.num_kv_heads * head_dim
    period = queries + 2 * head_dim

    def fused(start: int, length: int) -> Stored:
        part = Part(period=period, start=start, length=length)
        return Stored(name=layer + "self_attention.query_key_value", part=part)

    has_two = config.is_parallel and "mlp_norm" in config.norms
    names: Names = {
        "embed": "transformer.word_embeddings",
        "attn_norm": layer + ("ln_attn" if has_two else "input_layernorm"),
        "q": fused(0, queries),
        "k": fused(queries, head_dim),
        "v": fused(queries + head_dim, head_dim),
        "o": layer + "self_attention.dense",
        "mlp_norm": layer + ("ln_mlp" if has_two else "post_attention_layernorm"),
        "up": layer + "mlp.dense_h_to_4h",
        "down": layer + "mlp.dense_4h_to_h",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    }
    return weight_map(
        config,
        names,
        harmless=r"transformer\.h\.\d+\.self_attention\.rotary_emb\.inv_freq",
        tied=("lm_head.weight",),
    )
