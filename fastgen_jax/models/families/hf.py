"""What Hugging Face's descriptions have in common: sizes, layers, and what is refused.

An absent optional field has transformers' documented default, which a family names itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.config import Activation, LayerConfig, ModelConfig, NormConfig, llama_config
from fastgen_jax.models.families.harmless import HARMLESS
from fastgen_jax.models.families.hf_rope import read_rope
from fastgen_jax.models.weights.family import JsonObject
from fastgen_jax.models.weights.fields import Fields

WHERE = "config.json"
SLIDING, FULL = "sliding_attention", "full_attention"

_CORRECT = "download the checkpoint again or correct the field"

# field -> (values that leave the mathematics unchanged, what any other value asks for). A family
# that implements one reads it before.
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "attention_bias": ((False,), "a bias in the attention projections"),
    "mlp_bias": ((False,), "a bias in the MLP projections"),
    "qkv_bias": ((False,), "a bias in the attention projections"),
    "sliding_window": ((), "sliding-window attention"),
    "use_sliding_window": ((False,), "sliding-window attention"),
    "quantization_config": ((), "loading weights quantized this way"),
    "compression_config": ((), "loading weights compressed this way"),
    "rope_interleaved": ((False,), "interleaved rotary pairs"),
    "is_encoder_decoder": ((False,), "an encoder"),
    "add_cross_attention": ((False,), "cross-attention"),
    "cross_attention_hidden_size": ((), "cross-attention"),
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

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class HfDescription(Fields):
    """config.json, read field by field, with generation_config.json beside it."""

    def __init__(self, config: JsonObject, generation_config: JsonObject) -> None:
        super().__init__(config, where=WHERE)
        self._generation = Fields(generation_config, where="generation_config.json")

    def llama_like(
        self,
        architecture: str,
        model_type: str,
        *,
        head_dim: int | None = None,
        norm_eps: str = "rms_norm_eps",
        rope_theta: float = 10000.0,
        rotary_share: float | None = None,
        max_length: str = "max_position_embeddings",
        has_rope: bool = True,
    ) -> ModelConfig:
        """A decoder as Llama's of the sizes that are stated under Llama's names.

        ``head_dim`` is the family's default; None stands for hidden_size / num_attention_heads.
        ``rotary_share`` is what it rotates of a head by default; None: all, and nothing else.
        The families' own fields and differences come after.
        """
        self.require("model_type", (model_type,), "this model type")
        hidden_size = self.integer("hidden_size")
        num_heads = self.integer("num_attention_heads")
        head_dim = self.integer("head_dim", head_dim or default_head_dim(hidden_size, num_heads))
        num_positions = self.integer(max_length)
        config = llama_config(
            architecture=architecture,
            vocab_size=self.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=self.integer("intermediate_size"),
            num_layers=self.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=self.integer("num_key_value_heads", num_heads),
            head_dim=head_dim,
            max_position_embeddings=num_positions,
            rms_norm_eps=self.positive_number(norm_eps),
            rope_theta=rope_theta,
            tie_word_embeddings=self.flag("tie_word_embeddings", False),
            bos_token_id=self.token_id("bos_token_id"),
            eos_token_ids=self.eos_token_ids(),
        )
        if not has_rope:
            return config
        rope = read_rope(
            self,
            head_dim=head_dim,
            max_length=num_positions,
            theta=rope_theta,
            rotary_share=rotary_share,
        )
        return replace(config, ropes=(rope,))

    def eos_token_ids(self) -> tuple[int, ...]:
        """End-of-sequence ids of config.json, then those that only generation_config.json has."""
        stated = self.token_ids("eos_token_id")
        return tuple(dict.fromkeys(stated + self._generation.token_ids("eos_token_id")))

    def activation(self, name: str = "hidden_act", default: str | None = None) -> Activation:
        """The function of the feed-forward."""
        value = self.text(name, default)
        if value not in _ACTIVATIONS:
            raise self.unsupported(name, value, "this activation")
        return _ACTIVATIONS[value]

    def window(self, default: int | None = None, name: str = "sliding_window") -> int | None:
        """Keys that a query sees; None for all. ``default`` is for an absent field."""
        if not self.is_stated(name):
            return default
        return None if self.get(name) is None else self.integer(name)

    def layer_kinds(self, num_layers: int, default: Sequence[str]) -> tuple[str, ...]:
        """Either "sliding_attention" or "full_attention" for each layer."""
        stated = self.items("layer_types")
        kinds = tuple(map(str, default if stated is None else stated))
        if len(kinds) != num_layers:
            raise CheckpointError(
                f"must name the kind of each of the {num_layers} layers ({WHERE})",
                field="layer_types",
                value=stated,
                remedy=_CORRECT,
            )
        for kind in kinds:
            if kind not in (SLIDING, FULL):
                raise self.unsupported("layer_types", kind, "this kind of attention")
        return kinds

    def finish(self, config: ModelConfig, harmless: Collection[str] = ()) -> ModelConfig:
        """The configuration, once nothing that may change the mathematics is left unread."""
        kinds = [FULL if layer.window is None else SLIDING for layer in config.layers]
        if not self.was_read("layer_types"):
            self.require("layer_types", (kinds,), "attention that isn't full in every layer")
        for name, (allowed, meaning) in _REFUSED.items():
            if not self.was_read(name) and name not in harmless:
                self.require(name, allowed, meaning)
        self.refuse_unread({*HARMLESS, *harmless})
        check_heads(config, where=WHERE)
        return config


def uniform_layers(
    num_layers: int, *, window: int | None = None, rope: int | None = 0
) -> tuple[LayerConfig, ...]:
    """Layers that don't differ."""
    return (LayerConfig(window=window, rope=rope, is_sparse=False),) * num_layers


def layers_of_kinds(
    kinds: Sequence[str], window: int | None, ropes: Mapping[str, int] | None = None
) -> tuple[LayerConfig, ...]:
    """A layer for each kind: the sliding ones have the window; ``ropes`` by kind, 0 without."""
    return tuple(
        LayerConfig(
            window=window if kind == SLIDING else None,
            rope=0 if ropes is None else ropes[kind],
            is_sparse=False,
        )
        for kind in kinds
    )


def layer_norm(epsilon: float) -> NormConfig:
    """LayerNorm with scale and bias."""
    return NormConfig(kind="layer", epsilon=epsilon, has_scale=True, has_bias=True, is_wide=False)


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
    for rope in config.ropes:
        if rope.rotary_dim % 2:
            raise CheckpointError(
                f"its rotated part, {rope.rotary_dim}, must be even, as the rotary embedding turns "
                f"pairs ({where})",
                field="head_dim",
                value=config.head_dim,
                remedy=_CORRECT,
            )
