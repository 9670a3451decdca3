"""GPT-2 and GPT-NeoX, Pythia among them: LayerNorm, biases, a plain feed-forward."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.models.config import LearnedPositions, MlpConfig, ModelConfig, llama_config
from fastgen_jax.models.families.hf import (
    WHERE,
    HfDescription,
    default_head_dim,
    layer_norm,
    uniform_layers,
)
from fastgen_jax.models.families.llama import ATTENTION_BIASES
from fastgen_jax.models.families.parts import parts_below_each_other
from fastgen_jax.models.families.tensor_names import Names, Stored, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, Part, WeightMap
from fastgen_jax.models.weights.fields import Fields

_GPT2_UNUSED = frozenset(
    (
        "attn_pdrop",
        "n_ctx",
        "reorder_and_upcast_attn",  # another order of the same sums
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    )
)


def gpt2_family() -> ModelFamily:
    """Return the description of GPT-2."""
    return ModelFamily(
        architecture="GPT2LMHeadModel",
        title="GPT-2",
        gguf_architecture=None,
        config_from_hf=_gpt2,
        config_from_gguf=None,
        hf_weights=_gpt2_weights,
        gguf_weights=None,
    )


def gpt_neox_family() -> ModelFamily:
    """Return the description of GPT-NeoX and Pythia."""
    return ModelFamily(
        architecture="GPTNeoXForCausalLM",
        title="GPT-NeoX, Pythia",
        gguf_architecture=None,
        config_from_hf=_gpt_neox,
        config_from_gguf=None,
        hf_weights=_gpt_neox_weights,
        gguf_weights=None,
    )


def _gpt2(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"layer_norm_epsilon": 1e-5, **config}, generation)
    fields.require("model_type", ("gpt2",), "this model type")
    width, num_heads = fields.integer("n_embd"), fields.integer("n_head")
    sizes = Fields({"head_dim": default_head_dim(width, num_heads)}, where=WHERE)
    result = llama_config(
        architecture="GPT2LMHeadModel",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=width,
        intermediate_size=fields.integer("n_inner", 4 * width),
        num_layers=fields.integer("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=sizes.integer("head_dim"),
        max_position_embeddings=fields.integer("n_positions"),
        rms_norm_eps=fields.positive_number("layer_norm_epsilon"),
        rope_theta=1.0,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        bos_token_id=fields.token_id("bos_token_id"),
        eos_token_ids=fields.eos_token_ids(),
    )
    attention = result.attention
    if not fields.flag("scale_attn_weights", True):
        attention = replace(attention, scale=1.0)
    if fields.flag("scale_attn_by_inverse_layer_idx", False):
        scales = tuple(1 / (index + 1) for index in range(result.num_layers))
        attention = replace(attention, query_scales=scales)
    result = replace(
        result,
        layers=uniform_layers(result.num_layers, rope=None),
        ropes=(),
        learned_positions=LearnedPositions(count=result.max_position_embeddings, offset=0),
        norm=layer_norm(result.norm.epsilon),
        attention=attention,
        mlp=MlpConfig(
            activation=fields.activation("activation_function", "gelu_new"), is_gated=False
        ),
        biases=(*ATTENTION_BIASES, "up", "down"),
    )
    return fields.finish(result, harmless=_GPT2_UNUSED)


def _gpt2_weights(config: ModelConfig) -> WeightMap:
    layer, width = "transformer.h.{layer}.", config.hidden_size
    fused = parts_below_each_other(
        layer + "attn.c_attn", {"q": width, "k": width, "v": width}, is_transposed=False
    )
    names: Names = {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "attn_norm": layer + "ln_1",
        **fused,
        "o": Stored(name=layer + "attn.c_proj", is_transposed=False),
        "mlp_norm": layer + "ln_2",
        "up": Stored(name=layer + "mlp.c_fc", is_transposed=False),
        "down": Stored(name=layer + "mlp.c_proj", is_transposed=False),
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    }
    return weight_map(
        config,
        names,
        harmless=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",
        tied=("lm_head.weight",),
        optional_prefix="transformer.",
    )


def _gpt_neox(config: JsonObject, generation: JsonObject) -> ModelConfig:
    # It has names of its own for what others call by the usual ones.
    old = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    renamed = {old.get(name, name): value for name, value in config.items()}
    fields = HfDescription({"layer_norm_eps": 1e-5, **renamed}, generation)
    result = fields.llama_like(
        "GPTNeoXForCausalLM", "gpt_neox", norm_eps="layer_norm_eps", rotary_share=0.25
    )
    biases = ATTENTION_BIASES if fields.flag("attention_bias", True) else ()
    result = replace(
        result,
        norm=layer_norm(result.norm.epsilon),
        is_parallel=fields.flag("use_parallel_residual", True),
        mlp=MlpConfig(activation=fields.activation(default="gelu"), is_gated=False),
        biases=(*biases, "up", "down"),
    )
    return fields.finish(result, harmless=("classifier_dropout",))


def _gpt_neox_weights(config: ModelConfig) -> WeightMap:
    layer, head_dim = "gpt_neox.layers.{layer}.", config.head_dim

    def fused(number: int) -> Stored:
        part = Part(period=3 * head_dim, start=number * head_dim, length=head_dim)
        return Stored(name=layer + "attention.query_key_value", part=part)

    names: Names = {
        "embed": "gpt_neox.embed_in",
        "attn_norm": layer + "input_layernorm",
        "q": fused(0),
        "k": fused(1),
        "v": fused(2),
        "o": layer + "attention.dense",
        "mlp_norm": layer + "post_attention_layernorm",
        "up": layer + "mlp.dense_h_to_4h",
        "down": layer + "mlp.dense_4h_to_h",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    }
    return weight_map(
        config,
        names,
        harmless=r"gpt_neox\.layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)",
        tied=("embed_out.weight",),
        renamed={"lm_head.weight": "embed_out.weight"},
    )
