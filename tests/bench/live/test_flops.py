"""FLOPs of a step of prompts, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.bench.live.flops import prefill_flops
from fastgen_jax.models.config import LayerConfig, MoeConfig, llama_config

MODEL = llama_config(
    vocab_size=100, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=4, max_position_embeddings=64, rope_theta=1e4, rms_norm_eps=1e-6,
    tie_word_embeddings=True,
)  # fmt: skip
LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12  # q, k and v, o, and the feed-forward
HEAD = 100 * 8


def test_products_attention_and_a_head_for_each_prompt() -> None:
    pairs = 3 * 4 // 2 + 2 * 3 // 2  # prompts of 3 and 2
    attention = 2 * 4 * (2 * 4) * pairs  # both layers; scores and values
    assert prefill_flops(MODEL, [3, 2]) == 2 * 5 * 2 * LAYER + 2 * 2 * HEAD + attention


def test_a_window_limits_the_pairs() -> None:
    windowed = replace(MODEL, layers=(LayerConfig(window=2, rope=0, is_sparse=False),) * 2)
    pairs = 1 + 2 + 2 + 2
    assert prefill_flops(windowed, [4]) == (2 * 4 * 2 * LAYER + 2 * HEAD + 2 * 4 * (2 * 4) * pairs)


def test_of_a_mixture_the_chosen_experts_count() -> None:
    moe = MoeConfig(
        num_experts=16, top_k=2, intermediate_size=12, softmax_first=True, normalizes_chosen=True,
        shared_intermediate_size=None, has_shared_gate=False, has_router_bias=False,
        has_expert_biases=False,
    )  # fmt: skip
    sparse = (LayerConfig(window=None, rope=0, is_sparse=True),) * 2
    mixture = replace(MODEL, moe=moe, layers=sparse)
    more = 2 * (3 * 8 * 12 + 8 * 16)  # of both layers: a second expert, and the router
    assert prefill_flops(mixture, [1]) - prefill_flops(MODEL, [1]) == 2 * more
