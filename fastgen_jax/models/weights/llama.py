"""The Llama family: descriptions, shapes and weight maps of LlamaForCausalLM."""

from __future__ import annotations

import re
from collections.abc import Collection

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.weights.family import (
    JsonObject,
    ModelFamily,
    Shapes,
    TensorPlacement,
    WeightMap,
)
from fastgen_jax.models.weights.llama_gguf import llama_config_from_gguf
from fastgen_jax.models.weights.llama_hf import ARCHITECTURE, llama_config_from_hf

# our name -> (name in a Hugging Face layer, name in a GGUF layer)
_LAYER_LINEARS = {
    "q": ("self_attn.q_proj", "attn_q"),
    "k": ("self_attn.k_proj", "attn_k"),
    "v": ("self_attn.v_proj", "attn_v"),
    "o": ("self_attn.o_proj", "attn_output"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "up": ("mlp.up_proj", "ffn_up"),
    "down": ("mlp.down_proj", "ffn_down"),
}
_LAYER_NORMS = {
    "attn_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
}


def llama_family() -> ModelFamily:
    """Return the description of the Llama family."""

    def config_from_gguf(fields: JsonObject, names: Collection[str]) -> ModelConfig:
        return llama_config_from_gguf(fields, tied="output.weight" not in names)

    return ModelFamily(
        architecture=ARCHITECTURE,
        gguf_architecture="llama",
        config_from_hf=llama_config_from_hf,
        config_from_gguf=config_from_gguf,
        shapes=llama_shapes,
        hf_weights=_hf_weights,
        gguf_weights=_gguf_weights,
    )


def llama_shapes(config: ModelConfig) -> Shapes:
    """Return the shape of every tensor in our layout; linear weights are [in, out]."""
    embed, ffn = config.hidden_size, config.intermediate_size
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    layer: Shapes = {
        "attn_norm": (embed,),
        "q": (embed, heads),
        "k": (embed, kv_heads),
        "v": (embed, kv_heads),
        "o": (heads, embed),
        "mlp_norm": (embed,),
        "gate": (embed, ffn),
        "up": (embed, ffn),
        "down": (ffn, embed),
    }
    shapes: Shapes = {"embed": (config.vocab_size, embed)}
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["final_norm"] = (embed,)
    if not config.tie_word_embeddings:
        shapes["head"] = (config.vocab_size, embed)
    return shapes


def _hf_weights(config: ModelConfig) -> WeightMap:
    def place(name: str) -> TensorPlacement:
        top = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
        if name in top:
            return TensorPlacement(name=name, stored_name=f"{top[name]}.weight")
        _, index, part = name.split(".")
        stored = (_LAYER_LINEARS | _LAYER_NORMS)[part][0]
        return TensorPlacement(
            name=name,
            stored_name=f"model.layers.{index}.{stored}.weight",
            transpose=part in _LAYER_LINEARS,
        )

    tied = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}
    return WeightMap(
        placements=tuple(place(name) for name in llama_shapes(config)),
        # Old exports keep the rotary frequencies, which follow from rope_theta.
        harmless=re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
        duplicates=tied,
    )


def _gguf_weights(config: ModelConfig) -> WeightMap:
    def place(name: str) -> TensorPlacement:
        top = {"embed": "token_embd", "final_norm": "output_norm", "head": "output"}
        if name in top:
            return TensorPlacement(name=name, stored_name=f"{top[name]}.weight")
        _, index, part = name.split(".")
        stored = (_LAYER_LINEARS | _LAYER_NORMS)[part][1]
        return TensorPlacement(
            name=name,
            stored_name=f"blk.{index}.{stored}.weight",
            transpose=part in _LAYER_LINEARS,
            interleaved_head_dim=config.head_dim if part in ("q", "k") else 0,
        )

    return WeightMap(
        placements=tuple(place(name) for name in llama_shapes(config)),
        harmless=re.compile(r"blk\.\d+\.attn_rot_embd\.weight"),
    )
