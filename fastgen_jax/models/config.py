"""A decoder's mathematics as data, read from a checkpoint's own description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastgen_jax.models.rope_config import DynamicNtkScaling, RopeConfig

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
NormPlace = Literal[
    "attn_norm",
    "attn_post_norm",
    "attn_sum_norm",
    "mlp_norm",
    "mlp_post_norm",
    "mlp_sum_norm",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    """How rows are normalized.

    Attributes:
        kind: "rms" scales to unit mean square (Zhang and Sennrich, 2019), "layer" subtracts the
            mean too (Ba et al., 2016).
        epsilon: added to the mean square.
        has_scale: whether every number is multiplied by a learned one.
        has_bias: whether one is added after that.
        is_wide: whether the scale is kept and applied in float32, before the one rounding.
    """

    kind: Literal["rms", "layer"]
    epsilon: float
    has_scale: bool
    has_bias: bool
    is_wide: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryKeyNorm:
    """A norm of queries and keys before they are rotated.

    Attributes:
        norm: how.
        over: what one norm takes together: "head" each head, with a scale that all heads share,
            "each_head" the same with scales of its own for every head, "all_heads" all of them.
    """

    norm: NormConfig
    over: Literal["head", "each_head", "all_heads"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMath:
    """What is done to scores.

    Attributes:
        scale: factor of the products of queries and keys.
        softcap: scores s become ``softcap * tanh(s / softcap)``; None leaves them.
        has_sinks: whether every head has a learned score that takes part in its softmax.
        query_key_norm: None for none.
        query_scales: a factor of every layer's queries; None for none.
    """

    scale: float
    softcap: float | None
    has_sinks: bool
    query_key_norm: QueryKeyNorm | None
    query_scales: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampedGate:
    """The gate of gpt-oss: ``(up + 1) * gate * sigmoid(alpha * gate)`` of clamped values.

    Attributes:
        alpha: steepness of the sigmoid.
        limit: gate is at most this, up lies between its negative and it.
    """

    alpha: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpConfig:
    """The feed-forward: ``down(f(gate(x)) * up(x))``, or ``down(f(up(x)))`` where it is plain."""

    activation: Activation | ClampedGate
    is_gated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """A mixture of experts, each a feed-forward of its own.

    Attributes:
        num_experts: experts.
        top_k: experts that a token goes to.
        intermediate_size: F of one expert.
        softmax_first: whether probabilities are taken over all experts, or over the chosen ones.
        normalizes_chosen: whether the chosen ones' probabilities are scaled to a sum of 1.
        shared_intermediate_size: F of the expert that serves every token; None: there is none.
        has_shared_gate: whether its result is scaled by a sigmoid of the token.
        has_router_bias, has_expert_biases: which products add a bias.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    softmax_first: bool
    normalizes_chosen: bool
    shared_intermediate_size: int | None
    has_shared_gate: bool
    has_router_bias: bool
    has_expert_biases: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """What may differ from layer to layer.

    Attributes:
        window: keys that a query sees, its own included; None for all.
        rope: index into the decoder's ``ropes``; None doesn't rotate.
        is_sparse: whether the feed-forward is the mixture of experts.
    """

    window: int | None
    rope: int | None
    is_sparse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedPositions:
    """A table of position embeddings, added to the tokens'.

    Attributes:
        count: rows of the table.
        offset: row of position 0.
    """

    count: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """All that the decoder's mathematics depends on; no default hides a checkpoint's choice.

    Sizes follow the axis letters of docs/architecture.md: V vocab_size, E hidden_size,
    F intermediate_size, H num_heads, K num_kv_heads, D head_dim.

    Attributes:
        architecture: the name under which the registry knows the family.
        layers: one for each of the L layers.
        ropes: the rotary embeddings that layers refer to; all turn the same number of numbers.
        norm: how hidden states are normalized.
        norms: where in a layer: before attention and feed-forward; behind them, where their results
            are normalized before they are added ("post"); or behind that, where the sum is ("sum").
        has_final_norm: whether there is one behind the last layer.
        is_parallel: whether attention and feed-forward read the same hidden state; without
            "mlp_norm" the same normalized one.
        biases: names of the matrices whose products add a bias, of ``models.tensors.MATRICES``.
        embedding_size: width of embeddings and head, where a matrix leads to and from E; None: E.
        embedding_scale, logit_scale: factors; None for none.
        logit_softcap: logits z become ``softcap * tanh(z / softcap)``; None leaves them.
        has_head_bias: whether logits have a bias.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]
    ropes: tuple[RopeConfig, ...]
    learned_positions: LearnedPositions | None
    norm: NormConfig
    norms: tuple[NormPlace, ...]
    has_final_norm: bool
    is_parallel: bool
    attention: AttentionMath
    mlp: MlpConfig
    moe: MoeConfig | None
    biases: tuple[str, ...]
    embedding_size: int | None
    embedding_scale: float | None
    logit_scale: float | None
    logit_softcap: float | None
    has_head_bias: bool
    tie_word_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def max_length(self) -> int:
        """Positions that a text may have; a base that grows with it reaches beyond training."""
        factors = [r.scaling.factor for r in self.ropes if isinstance(r.scaling, DynamicNtkScaling)]
        return int(self.max_position_embeddings * min(factors, default=1.0))

    @property
    def num_parameters(self) -> int:
        """Number of weights, counting a tied embedding once."""
        from fastgen_jax.models.tensors import tensor_shapes

        return sum(math.prod(shape) for shape in tensor_shapes(self).values())

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Every window that some layer has, each once, in the order of the layers."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    @property
    def depends_on_length(self) -> bool:
        """Whether a position is rotated by an angle that depends on how long its text is."""
        return any(rope.depends_on_length for rope in self.ropes)


def rms_norm(epsilon: float) -> NormConfig:
    """The norm of Llama."""
    return NormConfig(kind="rms", epsilon=epsilon, has_scale=True, has_bias=False, is_wide=False)


def llama_config(
    *,
    architecture: str = "LlamaForCausalLM",
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_position_embeddings: int,
    rms_norm_eps: float,
    rope_theta: float,
    tie_word_embeddings: bool,
    bos_token_id: int | None = None,
    eos_token_ids: tuple[int, ...] = (),
) -> ModelConfig:
    """A decoder as Llama's: RMS norms before both parts, full rotation, gated SiLU, no biases."""
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        layers=(LayerConfig(window=None, rope=0, is_sparse=False),) * num_layers,
        ropes=(RopeConfig(theta=rope_theta, rotary_dim=head_dim, scaling=None),),
        learned_positions=None,
        norm=rms_norm(rms_norm_eps),
        norms=("attn_norm", "mlp_norm"),
        has_final_norm=True,
        is_parallel=False,
        attention=AttentionMath(
            scale=head_dim**-0.5,
            softcap=None,
            has_sinks=False,
            query_key_norm=None,
            query_scales=None,
        ),
        mlp=MlpConfig(activation="silu", is_gated=True),
        moe=None,
        biases=(),
        embedding_size=None,
        embedding_scale=None,
        logit_scale=None,
        logit_softcap=None,
        has_head_bias=False,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
    )
