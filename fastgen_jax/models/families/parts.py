"""Parts of descriptions that several families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastgen_jax.models.config import ModelConfig, MoeConfig, QueryKeyNorm
from fastgen_jax.models.families.tensor_names import Names, Stored
from fastgen_jax.models.weights.family import Part


def with_gemma_parts(config: ModelConfig) -> ModelConfig:
    """The model with Gemma's wide norms, scaled embeddings and tanh GELU."""
    return replace(
        config,
        norm=replace(config.norm, is_wide=True),
        mlp=replace(config.mlp, activation="gelu_tanh"),
        embedding_scale=config.hidden_size**0.5,
    )


def with_norms_behind(config: ModelConfig) -> ModelConfig:
    """The model with norms before and behind both parts of a layer."""
    return replace(config, norms=("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm"))


def with_head_norms(config: ModelConfig) -> ModelConfig:
    """The model with each query head and key head normalized as hidden states are."""
    norm = QueryKeyNorm(norm=config.norm, over="head")
    return replace(config, attention=replace(config.attention, query_key_norm=norm))


def all_sparse(config: ModelConfig) -> ModelConfig:
    """The model with every layer a mixture."""
    return replace(config, layers=tuple(replace(layer, is_sparse=True) for layer in config.layers))


def mixture_of(num_experts: int, top_k: int, intermediate_size: int) -> MoeConfig:
    """A mixture as Mixtral's: the softmax over all experts, scaled to 1 over those chosen."""
    return MoeConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=intermediate_size,
        softmax_first=True,
        normalizes_chosen=True,
        shared_intermediate_size=None,
        has_shared_gate=False,
        has_router_bias=False,
        has_expert_biases=False,
    )


def fused_rows(config: ModelConfig, qkv: str, gate_up: str) -> Names:
    """Query, key and value below each other in one tensor, gate and up in another."""
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    inner = config.intermediate_size
    return {
        **parts_below_each_other(qkv, {"q": heads, "k": kv_heads, "v": kv_heads}),
        **parts_below_each_other(gate_up, {"gate": inner, "up": inner}),
    }


def parts_below_each_other(
    stored: str, sizes: Mapping[str, int], *, is_transposed: bool = True
) -> Names:
    """Tensors of ours whose output features stand one after the other in a stored one."""
    names: dict[str, Stored] = {}
    start, period = 0, sum(sizes.values())
    for name, length in sizes.items():
        part = Part(period=period, start=start, length=length)
        names[name] = Stored(name=stored, part=part, is_transposed=is_transposed)
        start += length
    return names
