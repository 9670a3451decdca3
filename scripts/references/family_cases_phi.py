"""Cases of Phi, Phi-3 and Falcon."""

from __future__ import annotations

from family_case import TINY, Case, Change, rope
from family_cases_llama import LONGROPE

PHI = dict(TINY) | {"layer_norm_eps": 0.02} | {"num_key_value_heads": 4}

PHI3 = dict(TINY) | {"rms_norm_eps": 0.02, "original_max_position_embeddings": 256}

FALCON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 24,
    "layer_norm_epsilon": 0.02,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
} | rope(900.0)

PHI3_LONG = {key: LONGROPE[key] for key in ("rope_type", "short_factor", "long_factor")}
PHI3_SMALL = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [1.5, 3.0, 6.0],
    "partial_rotary_factor": 0.75,
}

CASES = (
    Case(
        name="phi",
        seed=2,
        model_type="phi",
        covers="Phi-1.5 and Phi-2: parallel residual, partial RoPE, layer norms, biases, gelu_new",
        config=PHI | rope(900.0, partial_rotary_factor=0.5),
        felt=(
            Change(name="RoPE of whole heads", config=rope(900.0, partial_rotary_factor=1.0)),
            Change(name="RoPE of a quarter", config=rope(900.0, partial_rotary_factor=0.25)),
            Change(name="exact GELU", config={"hidden_act": "gelu"}),
        ),
    ),
    Case(
        name="phi_qk_layernorm",
        seed=33,
        model_type="phi",
        covers="Phi: qk_layernorm, grouped query heads, RoPE linear",
        config=PHI
        | {"qk_layernorm": True, "num_key_value_heads": 2, "tie_word_embeddings": True}
        | rope(900.0, rope_type="linear", factor=4.0, partial_rotary_factor=0.5),
        felt=(
            Change(name="no q and k norms", config={"qk_layernorm": False}),
            Change(name="default RoPE", config=rope(900.0, partial_rotary_factor=0.5)),
        ),
    ),
    Case(
        name="phi3",
        seed=0,
        model_type="phi3",
        covers="Phi-3: fused q, k, v and gate, up; sliding window of 12",
        config=PHI3 | rope(900.0) | {"sliding_window": 12},
        felt=(
            Change(name="no window", config={"sliding_window": None}),
            Change(name="window of 13", config={"sliding_window": 13}),
        ),
    ),
    Case(
        name="phi3_longrope",
        seed=0,
        model_type="phi3",
        covers="Phi-3.5: longrope on both sides of the switch and across it while decoding",
        config=PHI3
        | {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 48,
            "tie_word_embeddings": True,
        }
        | rope(900.0, **PHI3_LONG),
        felt=(
            Change(name="default RoPE", config=rope(900.0)),
            Change(
                name="attention factor 1", config=rope(900.0, **PHI3_LONG, attention_factor=1.0)
            ),
        ),
        fixed_rope=True,
        note="When a request grows beyond original_max_position_embeddings = 48, generate drops "
        "its cache and rotates all keys again with the long factors, so the result does not "
        "depend on the cache. frozen_at_prompt keeps the factors of the prompt's length and "
        "frozen_at_total those of the prompt's length plus the new tokens. Only the prompt of "
        "40 tokens crosses the switch.",
    ),
    Case(
        name="phi3_partial",
        seed=0,
        model_type="phi3",
        covers="Phi-4-mini: partial RoPE with longrope, tied head, window beyond all lengths",
        config=PHI3
        | {
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "sliding_window": 200,
            "tie_word_embeddings": True,
        }
        | rope(900.0, **PHI3_SMALL),
        felt=(Change(name="default RoPE", config=rope(900.0, partial_rotary_factor=0.75)),),
        fixed_rope=True,
        note="The switch is at 32 positions: the prompt of 17 tokens crosses it. Results are "
        "named as in phi3_longrope.",
    ),
    Case(
        name="falcon_7b",
        seed=6,
        model_type="falcon",
        covers="Falcon 7B: parallel residual with one norm, one key head, no biases, exact GELU",
        config=FALCON | {"multi_query": True, "parallel_attn": True, "bias": False},
        felt=(Change(name="tanh GELU", config={"activation": "gelu_pytorch_tanh"}),),
    ),
    Case(
        name="falcon_40b",
        seed=0,
        model_type="falcon",
        covers="Falcon 40B: new_decoder_architecture, two norms, grouped query heads",
        config=FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        note="transformers fills num_ln_in_parallel_attn = 2 in; legacy_config.json lacks it.",
    ),
    Case(
        name="falcon_180b",
        seed=1,
        model_type="falcon",
        covers="Falcon 180B: new_decoder_architecture with biases, one key head, untied head",
        config=FALCON
        | {
            "new_decoder_architecture": True,
            "num_kv_heads": 1,
            "bias": True,
            "tie_word_embeddings": False,
        },
        felt=(
            Change(name="no biases", config={"bias": False}),
            Change(name="tied head", config={"tie_word_embeddings": True}),
        ),
        unfelt=(Change(name="multi_query false", config={"multi_query": False}),),
        note="The 180B model is computed like the 40B one; this case adds what that one lacks.",
    ),
    Case(
        name="falcon_11b",
        seed=3,
        model_type="falcon",
        covers="Falcon 2 11B: new_decoder_architecture with num_ln_in_parallel_attn 1",
        config=FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        felt=(Change(name="two norms", config={"num_ln_in_parallel_attn": 2}),),
    ),
    Case(
        name="falcon_sequential",
        seed=25,
        model_type="falcon",
        covers="Falcon: parallel_attn false, multi_query false (q, k, v interleaved by head), RoPE",
        config=FALCON
        | {"ffn_hidden_size": 24, "multi_query": False, "parallel_attn": False, "bias": True},
        felt=(Change(name="no biases", config={"bias": False}),),
    ),
)
