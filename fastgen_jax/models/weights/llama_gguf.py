"""A Llama's shape from GGUF metadata."""

from __future__ import annotations

import numpy as np

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.weights.family import JsonObject
from fastgen_jax.models.weights.fields import Fields
from fastgen_jax.models.weights.llama_hf import ARCHITECTURE, check_heads, default_head_dim

_WHERE = "GGUF metadata"

# field -> (values that leave the mathematics unchanged, what any other value asks for)
_REQUIRED_VALUES: dict[str, tuple[tuple[object, ...], str]] = {
    "general.type": (("model",), "a GGUF of this kind"),
    "split.count": ((0, 1), "a model split over several GGUF files"),
    "llama.attention.causal": ((True,), "attention without a causal mask"),
    "llama.attention.clamp_kqv": ((0.0,), "clamping q, k and v"),
    "llama.attention.scale": ((0.0,), "another attention scale"),
    "llama.attention.sliding_window": ((0,), "sliding-window attention"),
    "llama.attention.layer_norm_epsilon": ((), "layer normalization"),
    "llama.attn_logit_softcapping": ((0.0,), "soft-capping logits"),
    "llama.final_logit_softcapping": ((0.0,), "soft-capping logits"),
    "llama.embedding_scale": ((1.0,), "scaling embeddings"),
    "llama.residual_scale": ((1.0,), "scaling residuals"),
    "llama.logit_scale": ((1.0,), "scaling logits"),
    "llama.expert_count": ((0,), "a mixture of experts"),
    "llama.expert_used_count": ((0,), "a mixture of experts"),
    "llama.rope.scale_linear": ((1.0,), "scaling the rotary embedding"),
    "llama.rope.scaling.type": (("none",), "scaling the rotary embedding"),
    "llama.rope.scaling.factor": ((1.0,), "scaling the rotary embedding"),
    "llama.rope.scaling.attn_factor": ((1.0,), "scaling the rotary embedding"),
    "llama.rope.scaling.original_context_length": ((), "scaling the rotary embedding"),
    "llama.rope.scaling.finetuned": ((False,), "scaling the rotary embedding"),
    "llama.use_parallel_residual": ((False,), "parallel residual branches"),
}

_HARMLESS = frozenset({"split.no", "split.tensors.count"})
# Descriptions of the file, the tokenizer (another part of the engine reads it) and the quantizer.
_HARMLESS_PREFIXES = ("general.", "tokenizer.", "quantize.", "imatrix.")


def llama_config_from_gguf(metadata: JsonObject, *, tied: bool) -> ModelConfig:
    """Return the model's shape; ``tied`` says that the file has no head of its own.

    End-of-sequence ids are the metadata's end of sequence, of turn and of message. Raises
    UnsupportedModelError or CheckpointError by field name.
    """
    fields = Fields(metadata, where=_WHERE)
    for name, (allowed, meaning) in _REQUIRED_VALUES.items():
        fields.require(name, allowed, meaning)
    hidden_size = fields.integer("llama.embedding_length")
    num_heads = fields.integer("llama.attention.head_count")
    head_dim = fields.integer(
        "llama.attention.key_length", default_head_dim(hidden_size, num_heads)
    )
    fields.require("llama.attention.value_length", (head_dim,), "a value size other than the key's")
    fields.require("llama.rope.dimension_count", (head_dim,), "a partial rotary embedding")
    eos_token_ids = [
        token
        for kind in ("eos", "eot", "eom")
        for token in fields.token_ids(f"tokenizer.ggml.{kind}_token_id")
    ]
    result = ModelConfig(
        architecture=ARCHITECTURE,
        vocab_size=_vocab_size(fields),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("llama.feed_forward_length"),
        num_layers=fields.integer("llama.block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position_embeddings=fields.integer("llama.context_length"),
        rms_norm_eps=_shortest(fields.positive_number("llama.attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(fields.positive_number("llama.rope.freq_base", 10000.0)),
        tie_word_embeddings=tied,
        bos_token_id=fields.token_id("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(eos_token_ids)),
    )
    fields.refuse_unread(_HARMLESS, _HARMLESS_PREFIXES)
    check_heads(result, where=_WHERE)
    return result


def _vocab_size(fields: Fields) -> int:
    tokens = fields.get("tokenizer.ggml.tokens")
    default = len(tokens) if isinstance(tokens, list) and tokens else None
    return fields.integer("llama.vocab_size", default)


def _shortest(value: float) -> float:
    """Undo the widening of a float32: 9.999999747378752e-06 is 1e-05, the value meant."""
    return float(str(np.float32(value)))
