"""StableLM: LayerNorm, a part of each head rotated, and side by side branches in some."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import ModelConfig, QueryKeyNorm
from fastgen_jax.models.families.hf import HfDescription, layer_norm
from fastgen_jax.models.families.llama import HF_NAMES, OLD_FREQUENCIES
from fastgen_jax.models.families.tensor_names import Names, Stored, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, WeightMap


def stablelm_family() -> ModelFamily:
    """Return the description of StableLM."""
    return ModelFamily(
        architecture="StableLmForCausalLM",
        title="StableLM, StableLM 2",
        gguf_architecture=None,
        config_from_hf=_stablelm,
        config_from_gguf=None,
        hf_weights=_weights,
        gguf_weights=None,
    )


def _weights(config: ModelConfig) -> WeightMap:
    attention = "model.layers.{layer}.self_attn."
    names: Names = {
        **HF_NAMES,
        "q_norm": Stored(name=attention + "q_layernorm.norms.{piece}", num_pieces=config.num_heads),
        "k_norm": Stored(
            name=attention + "k_layernorm.norms.{piece}", num_pieces=config.num_kv_heads
        ),
    }
    return weight_map(config, names, harmless=OLD_FREQUENCIES, tied=("lm_head.weight",))


def _stablelm(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"layer_norm_eps": 1e-5, **config}, generation)
    result = fields.llama_like(
        "StableLmForCausalLM", "stablelm", norm_eps="layer_norm_eps", rotary_share=0.25
    )
    norm = layer_norm(result.norm.epsilon)
    head_norm = None
    if fields.flag("qk_layernorm", False):
        head_norm = QueryKeyNorm(norm=replace(norm, has_bias=False), over="each_head")
    is_parallel = fields.flag("use_parallel_residual", False)
    result = replace(
        result,
        norm=norm,
        norms=("attn_norm",) if is_parallel else ("attn_norm", "mlp_norm"),
        is_parallel=is_parallel,
        attention=replace(result.attention, query_key_norm=head_norm),
        mlp=replace(result.mlp, activation=fields.activation(default="silu")),
        biases=("q", "k", "v") if fields.flag("use_qkv_bias", False) else (),
    )
    return fields.finish(result)
