"""A Llama's shape from Hugging Face's config.json and generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.weights.family import JsonObject
from fastgen_jax.models.weights.fields import Fields

ARCHITECTURE = "LlamaForCausalLM"

_WHERE = "config.json"
_CORRECT = "download the checkpoint again or correct the field"

# field -> (values that leave the mathematics unchanged, what any other value asks for)
_REQUIRED_VALUES: dict[str, tuple[tuple[object, ...], str]] = {
    "model_type": (("llama",), "this model type"),
    "hidden_act": (("silu", "swish"), "this activation"),
    "attention_bias": ((False,), "a bias in the attention projections"),
    "mlp_bias": ((False,), "a bias in the MLP projections"),
    "qkv_bias": ((False,), "a bias in the attention projections"),
    "sliding_window": ((), "sliding-window attention"),
    "use_sliding_window": ((False,), "sliding-window attention"),
    "quantization_config": ((), "loading weights quantized this way"),
    "compression_config": ((), "loading weights compressed this way"),
    "rope_interleaved": ((False,), "interleaved rotary pairs"),
    "partial_rotary_factor": ((1, 1.0), "a partial rotary embedding"),
    "is_encoder_decoder": ((False,), "an encoder"),
    "add_cross_attention": ((False,), "cross-attention"),
    "tie_encoder_decoder": ((False,), "an encoder"),
    "pruned_heads": (({}, []), "pruning heads"),
    "auto_map": ((), "code shipped with the checkpoint"),
    "num_experts": ((0, 1), "a mixture of experts"),
    "num_local_experts": ((0, 1), "a mixture of experts"),
    "num_experts_per_tok": ((0, 1), "a mixture of experts"),
    "attn_logit_softcapping": ((), "soft-capping logits"),
    "final_logit_softcapping": ((), "soft-capping logits"),
    "logit_scale": ((1, 1.0), "scaling logits"),
    "embedding_multiplier": ((1, 1.0), "scaling embeddings"),
    "residual_multiplier": ((1, 1.0), "scaling residuals"),
    "attention_multiplier": ((), "another attention scale"),
    "no_rope_layers": (([],), "layers without a rotary embedding"),
}

# What training, naming and other programs' generation settings leave in config.json.
_HARMLESS = frozenset(
    (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "embd_pdrop",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_llama_config",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "resid_pdrop",
        "residual_dropout",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    )
)


def llama_config_from_hf(config: JsonObject, generation_config: JsonObject) -> ModelConfig:
    """Return the model's shape; an absent optional field has transformers' documented default.

    End-of-sequence ids are those of config.json followed by those that only
    generation_config.json has. Raises UnsupportedModelError or CheckpointError by field name.
    """
    fields = Fields(config, where=_WHERE)
    for name, (allowed, meaning) in _REQUIRED_VALUES.items():
        fields.require(name, allowed, meaning)
    hidden_size = fields.integer("hidden_size")
    num_layers = fields.integer("num_hidden_layers")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    rope_theta = _rope_theta(fields)
    _check_layer_types(fields, num_layers)
    eos_token_ids = fields.token_ids("eos_token_id")
    generated_eos = Fields(generation_config, where="generation_config.json").token_ids(
        "eos_token_id"
    )
    result = ModelConfig(
        architecture=ARCHITECTURE,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=fields.integer("head_dim", default_head_dim(hidden_size, num_heads)),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.positive_number("rms_norm_eps"),
        rope_theta=rope_theta,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        bos_token_id=fields.token_id("bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(eos_token_ids + generated_eos)),
    )
    fields.refuse_unread(_HARMLESS)
    check_heads(result, where=_WHERE)
    return result


def default_head_dim(hidden_size: int, num_heads: int) -> int | None:
    """Return hidden_size / num_heads, or None where that isn't whole and must be stated."""
    return hidden_size // num_heads if hidden_size % num_heads == 0 else None


def check_heads(config: ModelConfig, *, where: str) -> None:
    """Raise CheckpointError when the heads can't be grouped or rotated."""
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            f"must divide the number of attention heads, {config.num_heads} ({where})",
            field="num_kv_heads",
            value=config.num_kv_heads,
            remedy=_CORRECT,
        )
    if config.head_dim % 2:
        raise CheckpointError(
            f"must be even, as the rotary embedding turns pairs ({where})",
            field="head_dim",
            value=config.head_dim,
            remedy=_CORRECT,
        )


def _rope_theta(fields: Fields) -> float:
    """Read the rotary base from rope_parameters or, in older descriptions, from rope_theta."""
    stated = {"rope_theta": fields.get("rope_theta")}
    for name in ("rope_scaling", "rope_parameters"):
        group = fields.get(name)
        if group is None:
            continue
        if not isinstance(group, Mapping):
            raise CheckpointError(
                f"must be an object ({_WHERE})", field=name, value=group, remedy=_CORRECT
            )
        # The full name in errors: "rope_type" alone doesn't say which group it is in.
        rope = Fields({f"{name}.{key}": value for key, value in group.items()}, where=_WHERE)
        rope.require(f"{name}.rope_type", ("default",), "scaling the rotary embedding")
        rope.require(f"{name}.type", ("default",), "scaling the rotary embedding")
        rope.require(f"{name}.factor", (1, 1.0), "scaling the rotary embedding")
        rope.require(f"{name}.partial_rotary_factor", (1, 1.0), "a partial rotary embedding")
        stated[f"{name}.rope_theta"] = rope.get(f"{name}.rope_theta")
        rope.refuse_unread(())
    checked = Fields(stated, where=_WHERE)
    values = {name: checked.positive_number(name) for name in stated if stated[name] is not None}
    if len(set(values.values())) > 1:
        raise CheckpointError(
            f"the rotary base is stated twice, differently ({_WHERE})",
            field=" and ".join(values),
            value=tuple(values.values()),
            remedy="keep the right one",
        )
    return next(iter(values.values()), 10000.0)


def _check_layer_types(fields: Fields, num_layers: int) -> None:
    everywhere_full = ["full_attention"] * num_layers
    fields.require("layer_types", (everywhere_full,), "attention that isn't full in every layer")
