"""The families that GGUF files hold: their shapes from metadata, and the names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.families.gguf import GgufDescription, shortest
from fastgen_jax.models.families.hf import FULL, SLIDING, layers_of_kinds, uniform_layers
from fastgen_jax.models.families.parts import (
    all_sparse,
    fused_rows,
    mixture_of,
    with_gemma_parts,
    with_head_norms,
    with_norms_behind,
)
from fastgen_jax.models.families.tensor_names import Names, Stored, weight_map
from fastgen_jax.models.rope_config import LongRopeScaling, RopeConfig
from fastgen_jax.models.weights.family import JsonObject, WeightMap
from fastgen_jax.models.weights.stored import StoredTensor

Tensors = Mapping[str, StoredTensor]

_LAYER = "blk.{layer}."
# Read for the configuration already, or follow from it.
_DESCRIBING = (
    r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd\.weight"
)
_LOCAL_THETA = 10000.0
_GEMMA3_PATTERN = 6
# Files don't state the attention scale: the largest models take it from the width of a head's share
# of E, the others from the head's size. They are known by their number of layers.
_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62


def llama_names(config: ModelConfig, *, interleaved: bool) -> Names:
    """The names of a Llama's tensors; ``interleaved`` says that rotary pairs are neighbours."""
    head_dim = config.head_dim if interleaved else 0
    return {
        "embed": "token_embd",
        "attn_norm": _LAYER + "attn_norm",
        "q": Stored(name=_LAYER + "attn_q", interleaved_head_dim=head_dim),
        "k": Stored(name=_LAYER + "attn_k", interleaved_head_dim=head_dim),
        "v": _LAYER + "attn_v",
        "q_norm": _LAYER + "attn_q_norm",
        "k_norm": _LAYER + "attn_k_norm",
        "o": _LAYER + "attn_output",
        "attn_post_norm": _LAYER + "post_attention_norm",
        "mlp_norm": _LAYER + "ffn_norm",
        "gate": _LAYER + "ffn_gate",
        "up": _LAYER + "ffn_up",
        "down": _LAYER + "ffn_down",
        "router": _LAYER + "ffn_gate_inp",
        "expert_gate": _LAYER + "ffn_gate_exps",
        "expert_up": _LAYER + "ffn_up_exps",
        "expert_down": _LAYER + "ffn_down_exps",
        "mlp_post_norm": _LAYER + "post_ffw_norm",
        "final_norm": "output_norm",
        "head": "output",
    }


def llama_weights(config: ModelConfig) -> WeightMap:
    """Return where the tensors of a file lie that calls itself llama."""
    return weight_map(config, llama_names(config, interleaved=True), harmless=_DESCRIBING)


def plain_weights(config: ModelConfig) -> WeightMap:
    """Return where the tensors of other files lie, whose rotary pairs are ours."""
    return weight_map(config, llama_names(config, interleaved=False), harmless=_DESCRIBING)


def phi3_weights(config: ModelConfig) -> WeightMap:
    """Return where the tensors of a Phi-3 lie, some of them fused."""
    fused = fused_rows(config, _LAYER + "attn_qkv", _LAYER + "ffn_up")
    names = {**llama_names(config, interleaved=False), **fused}
    return weight_map(config, names, harmless=_DESCRIBING)


def llama_from_gguf(metadata: JsonObject, tensors: Tensors) -> ModelConfig:
    """Return the shape of a Llama, or of a Mistral or Mixtral, whose files say llama too."""
    fields = GgufDescription(metadata, tensors, "llama")
    config = fields.llama_like("LlamaForCausalLM")
    fields.require(fields.key("rope.dimension_count"), (config.head_dim,), "a partial rotation")
    num_experts = fields.integer(fields.key("expert_count"), 0, minimum=0)
    if num_experts:
        top_k = fields.integer(fields.key("expert_used_count"))
        moe = mixture_of(num_experts, top_k, config.intermediate_size)
        config = all_sparse(replace(config, moe=moe))
    return fields.finish(config)


def qwen2_from_gguf(metadata: JsonObject, tensors: Tensors) -> ModelConfig:
    """Return the shape of a Qwen 2 or 2.5."""
    fields = GgufDescription(metadata, tensors, "qwen2")
    config = fields.llama_like("Qwen2ForCausalLM")
    return fields.finish(replace(config, biases=("q", "k", "v")))


def qwen3_from_gguf(metadata: JsonObject, tensors: Tensors) -> ModelConfig:
    """Return the shape of a Qwen 3."""
    fields = GgufDescription(metadata, tensors, "qwen3")
    return fields.finish(with_head_norms(fields.llama_like("Qwen3ForCausalLM")))


def gemma_from_gguf(metadata: JsonObject, tensors: Tensors) -> ModelConfig:
    """Return the shape of a Gemma 1; files hold the norms' scales with their 1."""
    fields = GgufDescription(metadata, tensors, "gemma")
    return fields.finish(with_gemma_parts(fields.llama_like("GemmaForCausalLM")))


def gemma2_from_gguf(metadata: JsonObject, tensors: Tensors) -> ModelConfig:
    """Return the shape of a Gemma 2."""
    fields = GgufDescription(metadata, tensors, "gemma2")
    config = with_norms_behind(with_gemma_parts(fields.llama_like("Gemma2ForCausalLM")))
    kinds = [FULL if index % 2 else SLIDING for index in range(config.num_layers)]
    config = replace(config, layers=layers_of_kinds(kinds, fields.window()))
    return fields.finish(_with_caps(fields, config, largest=_GEMMA2_27B_LAYERS))


def gemma3_from_gguf(metadata: JsonObject, tensors: Tensors) -> ModelConfig:
    """Return the shape of a Gemma 3's text model."""
    fields = GgufDescription(metadata, tensors, "gemma3")
    config = with_norms_behind(with_gemma_parts(fields.llama_like("Gemma3ForCausalLM")))
    pattern = fields.integer(fields.key("attention.sliding_window_pattern"), _GEMMA3_PATTERN)
    kinds = [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(config.num_layers)]
    layers = layers_of_kinds(kinds, fields.window(), {FULL: 0, SLIDING: 1})
    theta = shortest(fields.positive_number(fields.key("rope.freq_base_swa"), _LOCAL_THETA))
    local = RopeConfig(theta=theta, rotary_dim=config.head_dim, scaling=None)
    config = with_head_norms(replace(config, layers=layers, ropes=(*config.ropes, local)))
    return fields.finish(_with_caps(fields, config, largest=_GEMMA3_27B_LAYERS))


def phi3_from_gguf(metadata: JsonObject, tensors: Tensors) -> ModelConfig:
    """Return the shape of a Phi-3, whose factors for long texts are tensors."""
    fields = GgufDescription(metadata, tensors, "phi3")
    config = fields.llama_like("Phi3ForCausalLM")
    config = replace(config, layers=uniform_layers(config.num_layers, window=fields.window()))
    short = fields.numbers_of("rope_factors_short.weight")
    long = fields.numbers_of("rope_factors_long.weight")
    original = fields.integer(
        fields.key("rope.scaling.original_context_length"), config.max_position_embeddings
    )
    if short is not None and long is not None:
        factor = fields.positive_number(fields.key("rope.scaling.attn_factor"), 1.0)
        scaling = LongRopeScaling(
            short_factors=short,
            long_factors=long,
            original_length=original,
            attention_factor=shortest(factor),
        )
        config = replace(config, ropes=(replace(config.ropes[0], scaling=scaling),))
    return fields.finish(config)


def _with_caps(fields: GgufDescription, config: ModelConfig, *, largest: int) -> ModelConfig:
    size = config.head_dim
    if config.num_layers == largest:
        size = config.hidden_size // config.num_heads
    attention = replace(
        config.attention, scale=size**-0.5, softcap=fields.softcap("attn_logit_softcapping")
    )
    return replace(
        config, attention=attention, logit_softcap=fields.softcap("final_logit_softcapping")
    )
