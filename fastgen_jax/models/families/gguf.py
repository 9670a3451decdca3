"""What GGUF metadata have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.config import ModelConfig, llama_config
from fastgen_jax.models.families.hf import check_heads, default_head_dim
from fastgen_jax.models.families.hf_rope import yarn_scale
from fastgen_jax.models.rope_config import (
    FrequencyFactors,
    LinearScaling,
    RopeScaling,
    YarnScaling,
)
from fastgen_jax.models.weights.family import JsonObject
from fastgen_jax.models.weights.fields import Fields
from fastgen_jax.models.weights.stored import StoredTensor

WHERE = "GGUF metadata"

# field -> (values that leave the mathematics unchanged, what any other value asks for). A family
# that implements one reads it before.
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "attention.causal": ((True,), "attention without a causal mask"),
    "attention.clamp_kqv": ((0.0,), "clamping q, k and v"),
    "attention.scale": ((0.0,), "another attention scale"),
    "attention.sliding_window": ((0,), "sliding-window attention"),
    "attention.layer_norm_epsilon": ((), "layer normalization"),
    "attn_logit_softcapping": ((0.0,), "soft-capping logits"),
    "final_logit_softcapping": ((0.0,), "soft-capping logits"),
    "embedding_scale": ((1.0,), "scaling embeddings"),
    "residual_scale": ((1.0,), "scaling residuals"),
    "logit_scale": ((1.0,), "scaling logits"),
    "expert_count": ((0,), "a mixture of experts"),
    "expert_used_count": ((0,), "a mixture of experts"),
    "rope.scale_linear": ((1.0,), "scaling the rotary embedding"),
    "rope.scaling.type": (("none", "linear", "yarn"), "scaling the rotary embedding"),
    "rope.scaling.factor": ((1.0,), "scaling the rotary embedding"),
    "rope.scaling.attn_factor": ((1.0,), "scaling the rotary embedding"),
    "rope.scaling.original_context_length": ((), "scaling the rotary embedding"),
    "rope.scaling.finetuned": ((False,), "scaling the rotary embedding"),
    "use_parallel_residual": ((False,), "parallel residual branches"),
}

_HARMLESS = frozenset({"split.no", "split.tensors.count"})
# Descriptions of the file, the tokenizer (another part of the engine reads it) and the quantizer.
_HARMLESS_PREFIXES = ("general.", "tokenizer.", "quantize.", "imatrix.")


class GgufDescription(Fields):
    """GGUF metadata, read field by field, beside the stored tensors, some of which describe too."""

    def __init__(
        self, metadata: JsonObject, tensors: Mapping[str, StoredTensor], prefix: str
    ) -> None:
        super().__init__(metadata, where=WHERE)
        self._tensors = tensors
        self._key = prefix

    def key(self, name: str) -> str:
        """The full name of a field of this architecture."""
        return f"{self._key}.{name}"

    def llama_like(self, architecture: str) -> ModelConfig:
        """A decoder as Llama's of the sizes that are stated.

        It is tied where the file has no head of its own. End-of-sequence ids are the metadata's end
        of sequence, of turn and of message.
        """
        self.require("general.type", ("model",), "a GGUF of this kind")
        self.require("split.count", (0, 1), "a model split over several GGUF files")
        key = self.key
        hidden_size = self.integer(key("embedding_length"))
        num_heads = self.integer(key("attention.head_count"))
        head_dim = self.integer(
            key("attention.key_length"), default_head_dim(hidden_size, num_heads)
        )
        self.require(
            key("attention.value_length"), (head_dim,), "a value size other than the key's"
        )
        rotary_dim = self.integer(key("rope.dimension_count"), head_dim)
        epsilon = self.positive_number(key("attention.layer_norm_rms_epsilon"))
        config = llama_config(
            architecture=architecture,
            vocab_size=self._vocab_size(),
            hidden_size=hidden_size,
            intermediate_size=self.integer(key("feed_forward_length")),
            num_layers=self.integer(key("block_count")),
            num_heads=num_heads,
            num_kv_heads=self.integer(key("attention.head_count_kv"), num_heads),
            head_dim=head_dim,
            max_position_embeddings=self.integer(key("context_length")),
            rms_norm_eps=shortest(epsilon),
            rope_theta=shortest(self.positive_number(key("rope.freq_base"), 10000.0)),
            tie_word_embeddings="output.weight" not in self._tensors,
            bos_token_id=self.token_id("tokenizer.ggml.bos_token_id"),
            eos_token_ids=self._eos_token_ids(),
        )
        scaling = self._rope_scaling()
        rope = replace(config.ropes[0], rotary_dim=rotary_dim, scaling=scaling)
        return replace(config, ropes=(rope,))

    def window(self) -> int | None:
        """Keys that a query sees; None for all."""
        return self.integer(self.key("attention.sliding_window"), 0, minimum=0) or None

    def softcap(self, name: str) -> float | None:
        """A soft cap; None for none."""
        value = self.optional_number(self.key(name), None)
        return None if value is None else shortest(value)

    def numbers_of(self, tensor: str) -> tuple[float, ...] | None:
        """The values of a small tensor that describes the model; None where it is absent."""
        stored = self._tensors.get(tensor)
        if stored is None:
            return None
        values = stored.encoding.decode(stored.read_lines(0, stored.num_lines)).reshape(-1)
        if not np.isfinite(values).all():
            raise CheckpointError(
                "has values that are infinite or not a number",
                field="tensor",
                value=tensor,
                remedy="download the file again",
            )
        return tuple(float(value) for value in values)

    def _rope_scaling(self) -> RopeScaling | None:
        factors = self.numbers_of("rope_freqs.weight")
        if factors is not None:
            return FrequencyFactors(factors=factors)
        kind = self.text(self.key("rope.scaling.type"), "none")
        if kind not in ("linear", "yarn"):
            return None  # what else may be stated is refused at the end, or a family reads it
        factor = shortest(self.positive_number(self.key("rope.scaling.factor")))
        self.get(self.key("rope.scaling.finetuned"))
        if kind == "linear":
            return LinearScaling(factor=factor)
        return YarnScaling(
            factor=factor,
            original_length=self.integer(self.key("rope.scaling.original_context_length")),
            beta_fast=32.0,
            beta_slow=1.0,
            attention_factor=yarn_scale(factor, 1.0),
            truncate=True,
        )

    def finish(self, config: ModelConfig) -> ModelConfig:
        """The configuration, once nothing that may change the mathematics is left unread."""
        for name, (allowed, meaning) in _REFUSED.items():
            is_kind = name == "rope.scaling.type"  # looked at, but not all of them understood
            if is_kind or not self.was_read(self.key(name)):
                self.require(self.key(name), allowed, meaning)
        self.refuse_unread(_HARMLESS, _HARMLESS_PREFIXES)
        check_heads(config, where=WHERE)
        return config

    def _eos_token_ids(self) -> tuple[int, ...]:
        ids = [
            token
            for kind in ("eos", "eot", "eom")
            for token in self.token_ids(f"tokenizer.ggml.{kind}_token_id")
        ]
        return tuple(dict.fromkeys(ids))

    def _vocab_size(self) -> int:
        tokens = self.get("tokenizer.ggml.tokens")
        default = len(tokens) if isinstance(tokens, list) and tokens else None
        return self.integer(self.key("vocab_size"), default)


def shortest(value: float) -> float:
    """Undo the widening of a float32: 9.999999747378752e-06 is 1e-05, the value meant."""
    return float(str(np.float32(value)))
