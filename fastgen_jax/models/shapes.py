"""Shapes of well-known models without their weights, for planning; from their published configs.

Rotary scaling isn't in them: Llama 3.1 needs it to be right, and it changes neither the sizes nor
the cost of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from fastgen_jax.models.config import ModelConfig, llama_config
from fastgen_jax.models.families.parts import all_sparse, mixture_of, with_head_norms

_llama_2 = partial(
    llama_config,
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    tie_word_embeddings=False,
)
_llama_31 = partial(
    _llama_2,
    vocab_size=128_256,
    intermediate_size=14_336,
    num_kv_heads=8,
    max_position_embeddings=131_072,
    rope_theta=500_000.0,
)

SHAPES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "llama-2-7b": _llama_2(),
        "llama-2-13b": _llama_2(
            hidden_size=5120,
            intermediate_size=13_824,
            num_layers=40,
            num_heads=40,
            num_kv_heads=40,
        ),
        "llama-2-70b": _llama_2(
            hidden_size=8192,
            intermediate_size=28_672,
            num_layers=80,
            num_heads=64,
            num_kv_heads=8,
        ),
        "llama-3.1-8b": _llama_31(),
        "llama-3.1-70b": _llama_31(
            hidden_size=8192,
            intermediate_size=28_672,
            num_layers=80,
            num_heads=64,
        ),
        # Version 0.3: no sliding window.
        "mistral-7b": _llama_31(
            vocab_size=32_768,
            max_position_embeddings=32_768,
            rope_theta=1_000_000.0,
        ),
        "mixtral-8x7b": all_sparse(
            replace(
                _llama_31(
                    architecture="MixtralForCausalLM",
                    vocab_size=32_000,
                    max_position_embeddings=32_768,
                    rope_theta=1_000_000.0,
                ),
                moe=mixture_of(8, 2, 14_336),
            )
        ),
        "qwen3-30b-a3b": all_sparse(
            replace(
                with_head_norms(
                    _llama_31(
                        architecture="Qwen3MoeForCausalLM",
                        vocab_size=151_936,
                        hidden_size=2048,
                        intermediate_size=6144,
                        num_layers=48,
                        num_kv_heads=4,
                        max_position_embeddings=40_960,
                        rms_norm_eps=1e-6,
                        rope_theta=1_000_000.0,
                    )
                ),
                moe=mixture_of(128, 8, 768),
            )
        ),
        "smollm2-135m": _llama_2(
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_layers=30,
            num_heads=9,
            num_kv_heads=3,
            head_dim=64,
            max_position_embeddings=8192,
            rope_theta=100_000.0,
            tie_word_embeddings=True,
        ),
    }
)
