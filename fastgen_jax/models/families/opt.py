"""OPT and Galactica: learned positions from row 2 on; the 350M model has its norms behind."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import LearnedPositions, MlpConfig, ModelConfig, NormConfig
from fastgen_jax.models.families.hf import HfDescription, uniform_layers
from fastgen_jax.models.families.llama import ATTENTION_BIASES
from fastgen_jax.models.families.tensor_names import Names, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, WeightMap

_OFFSET = 2
_EPSILON = 1e-5  # torch's, as OPT states none
_UNUSED = frozenset({"dropout", "layerdrop", "init_std", "activation_dropout", "output_projection"})


def opt_family() -> ModelFamily:
    """Return the description of OPT."""
    return ModelFamily(
        architecture="OPTForCausalLM",
        title="OPT, Galactica",
        gguf_architecture=None,
        config_from_hf=_opt,
        config_from_gguf=None,
        hf_weights=_weights,
        gguf_weights=None,
    )


def _weights(config: ModelConfig) -> WeightMap:
    layer = "model.decoder.layers.{layer}."
    names: Names = {
        "embed": "model.decoder.embed_tokens",
        "embed_in": "model.decoder.project_in",
        "positions": "model.decoder.embed_positions",
        "attn_norm": layer + "self_attn_layer_norm",
        "q": layer + "self_attn.q_proj",
        "k": layer + "self_attn.k_proj",
        "v": layer + "self_attn.v_proj",
        "o": layer + "self_attn.out_proj",
        "attn_sum_norm": layer + "self_attn_layer_norm",
        "mlp_norm": layer + "final_layer_norm",
        "up": layer + "fc1",
        "down": layer + "fc2",
        "mlp_sum_norm": layer + "final_layer_norm",
        "final_norm": "model.decoder.final_layer_norm",
        "embed_out": "model.decoder.project_out",
        "head": "lm_head",
    }
    return weight_map(config, names, tied=("lm_head.weight",), optional_prefix="model.")


def _opt(config: JsonObject, generation: JsonObject) -> ModelConfig:
    sizes = {"intermediate_size": config.get("ffn_dim"), "eps": _EPSILON}
    defaults = {"tie_word_embeddings": True, "num_key_value_heads": None}
    fields = HfDescription({**defaults, **config, **sizes}, generation)
    fields.get("ffn_dim")
    result = fields.llama_like("OPTForCausalLM", "opt", norm_eps="eps", has_rope=False)
    has_bias = fields.flag("enable_bias", True)
    has_scale = fields.flag("layer_norm_elementwise_affine", True)
    is_before = fields.flag("do_layer_norm_before", True)
    lacks_final = fields.flag("_remove_final_layer_norm", False)
    embedded = fields.integer("word_embed_proj_dim", result.hidden_size)
    result = replace(
        result,
        layers=uniform_layers(result.num_layers, rope=None),
        ropes=(),
        learned_positions=LearnedPositions(
            count=result.max_position_embeddings + _OFFSET, offset=_OFFSET
        ),
        norm=NormConfig(
            kind="layer", epsilon=_EPSILON, has_scale=has_scale, has_bias=has_scale, is_wide=False
        ),
        norms=("attn_norm", "mlp_norm") if is_before else ("attn_sum_norm", "mlp_sum_norm"),
        has_final_norm=is_before and not lacks_final,
        mlp=MlpConfig(activation=fields.activation("activation_function", "relu"), is_gated=False),
        biases=(*ATTENTION_BIASES, "up", "down") if has_bias else (),
        embedding_size=None if embedded == result.hidden_size else embedded,
    )
    return fields.finish(result, harmless=_UNUSED)
