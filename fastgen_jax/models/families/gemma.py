"""Gemma 1, 2 and 3: scaled embeddings, norms whose scale is 1 more than stored, windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.families.gguf_models import (
    Tensors,
    gemma2_from_gguf,
    gemma3_from_gguf,
    gemma_from_gguf,
    plain_weights,
)
from fastgen_jax.models.families.hf import FULL, SLIDING, HfDescription, layers_of_kinds
from fastgen_jax.models.families.hf_rope import read_scaling
from fastgen_jax.models.families.llama import ATTENTION_BIASES, HF_NAMES, OLD_FREQUENCIES
from fastgen_jax.models.families.parts import (
    with_gemma_parts,
    with_head_norms,
    with_norms_behind,
)
from fastgen_jax.models.families.tensor_names import Names, Stored, weight_map
from fastgen_jax.models.rope_config import RopeConfig
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, WeightMap
from fastgen_jax.models.weights.fields import Fields

_LAYER = "model.layers.{layer}."
_NORMS = {
    "attn_norm": _LAYER + "input_layernorm",
    "mlp_norm": _LAYER + "post_attention_layernorm",
    "final_norm": "model.norm",
}
# With norms behind both parts, what Llama calls post_attention is behind the attention indeed.
_MORE_NORMS = {
    "attn_post_norm": _LAYER + "post_attention_layernorm",
    "mlp_norm": _LAYER + "pre_feedforward_layernorm",
    "mlp_post_norm": _LAYER + "post_feedforward_layernorm",
    "q_norm": _LAYER + "self_attn.q_norm",
    "k_norm": _LAYER + "self_attn.k_norm",
}


def gemma_family() -> ModelFamily:
    """Return the description of Gemma 1."""
    return _family("GemmaForCausalLM", "Gemma 1", "gemma", _gemma, gemma_from_gguf, _NORMS)


def gemma2_family() -> ModelFamily:
    """Return the description of Gemma 2."""
    return _family(
        "Gemma2ForCausalLM", "Gemma 2", "gemma2", _gemma2, gemma2_from_gguf, _NORMS | _MORE_NORMS
    )


def gemma3_family() -> ModelFamily:
    """Return the description of Gemma 3's text models."""
    return _family(
        "Gemma3ForCausalLM",
        "Gemma 3, text",
        "gemma3",
        _gemma3,
        gemma3_from_gguf,
        _NORMS | _MORE_NORMS,
    )


def _family(
    architecture: str,
    title: str,
    gguf: str,
    from_hf: Callable[[JsonObject, JsonObject], ModelConfig],
    from_gguf: Callable[[JsonObject, Tensors], ModelConfig],
    norms: Mapping[str, str],
) -> ModelFamily:
    names: Names = {**HF_NAMES, **{name: Stored(name=n, add=1.0) for name, n in norms.items()}}

    def hf_weights(config: ModelConfig) -> WeightMap:
        return weight_map(config, names, harmless=OLD_FREQUENCIES, tied=("lm_head.weight",))

    return ModelFamily(
        architecture=architecture,
        title=title,
        gguf_architecture=gguf,
        config_from_hf=from_hf,
        config_from_gguf=from_gguf,
        hf_weights=hf_weights,
        gguf_weights=plain_weights,
    )


def _gemma(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"tie_word_embeddings": True, **config}, generation)
    result = with_gemma_parts(fields.llama_like("GemmaForCausalLM", "gemma", head_dim=256))
    return _finish(fields, result)


def _gemma2(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"tie_word_embeddings": True, **config}, generation)
    result = fields.llama_like("Gemma2ForCausalLM", "gemma2", head_dim=256)
    result = with_norms_behind(with_gemma_parts(result))
    attention_cap = fields.optional_number("attn_logit_softcapping", 50.0)
    result = _with_attention(fields, result, attention_cap=attention_cap)
    result = replace(result, logit_softcap=fields.optional_number("final_logit_softcapping", 30.0))
    default = [FULL if index % 2 else SLIDING for index in range(result.num_layers)]
    kinds = fields.layer_kinds(result.num_layers, default)
    return _finish(fields, replace(result, layers=layers_of_kinds(kinds, fields.window(4096))))


def _gemma3(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"tie_word_embeddings": True, **config}, generation)
    result = fields.llama_like("Gemma3ForCausalLM", "gemma3_text", head_dim=256, has_rope=False)
    result = with_head_norms(with_norms_behind(with_gemma_parts(result)))
    result = _with_attention(fields, result, attention_cap=None)
    result = replace(result, logit_softcap=fields.optional_number("final_logit_softcapping", None))
    pattern = fields.integer("sliding_window_pattern", 6)
    fields.get("_sliding_window_pattern")
    default = [SLIDING if (index + 1) % pattern else FULL for index in range(result.num_layers)]
    kinds = fields.layer_kinds(result.num_layers, default)
    layers = layers_of_kinds(kinds, fields.window(4096), {FULL: 0, SLIDING: 1})
    return _finish(fields, replace(result, layers=layers, ropes=_gemma3_ropes(fields, result)))


def _gemma3_ropes(fields: HfDescription, config: ModelConfig) -> tuple[RopeConfig, RopeConfig]:
    """The ropes of full and of sliding layers, which older descriptions state side by side."""
    bases = (("rope_theta", 1_000_000.0), ("rope_local_base_freq", 10_000.0))
    group = fields.group("rope_parameters") or Fields({}, where=fields.where)
    old = fields.group("rope_scaling")
    ropes: list[RopeConfig] = []
    for kind, (name, default) in zip((FULL, SLIDING), bases, strict=True):
        inner = group.group(kind)
        theta = fields.positive_number(name, default)
        theta = theta if inner is None else inner.positive_number("rope_theta", theta)
        scaled = inner if inner is not None else old if kind == FULL else None
        scaling = None
        if scaled is not None:
            scaling = read_scaling(
                scaled, fields, max_length=config.max_position_embeddings, aliases={}
            )
        ropes.append(RopeConfig(theta=theta, rotary_dim=config.head_dim, scaling=scaling))
    group.refuse_unread(())
    return ropes[0], ropes[1]


def _with_attention(
    fields: HfDescription, config: ModelConfig, *, attention_cap: float | None
) -> ModelConfig:
    """The model with its own attention scale and a soft cap of scores."""
    scale = fields.positive_number("query_pre_attn_scalar", 256.0) ** -0.5
    attention = replace(config.attention, scale=scale, softcap=attention_cap)
    return replace(config, attention=attention)


def _finish(fields: HfDescription, config: ModelConfig) -> ModelConfig:
    """Refuses other activations: old files say "gelu" and mean the tanh one."""
    allowed = ("gelu", "gelu_pytorch_tanh")
    for name in ("hidden_act", "hidden_activation"):
        fields.require(name, allowed, "this activation")
    fields.require("use_bidirectional_attention", (False,), "attention without a causal mask")
    biases = ATTENTION_BIASES if fields.flag("attention_bias", False) else ()
    return fields.finish(replace(config, biases=biases), harmless=("cache_implementation",))
