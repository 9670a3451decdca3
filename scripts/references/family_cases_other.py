"""Cases of OPT, GPT-2, GPT-NeoX, OLMo-2, StableLM and gpt-oss."""

from __future__ import annotations

from family_case import TINY, Case, Change, rope

EPS = {"layer_norm_eps": 0.02}

OPT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 124,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}

GPT2 = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 24,
    "n_positions": 124,
    "layer_norm_epsilon": 0.02,
    "bos_token_id": 95,
    "eos_token_id": 95,
}

NEOX = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
} | EPS

OLMO2 = dict(TINY) | {"rms_norm_eps": 0.02} | rope(900.0)

STABLELM = dict(TINY) | EPS | {"num_attention_heads": 2, "num_key_value_heads": 1}

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}

GPT_OSS = dict(TINY) | {
    "intermediate_size": 8,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 12,
    "max_position_embeddings": 128,
    "rms_norm_eps": 0.02,
    "swiglu_limit": 1.5,
    "tie_word_embeddings": True,
}

CASES = (
    Case(
        name="opt",
        seed=2,
        model_type="opt",
        covers="OPT: learned positions from row 2 on, ReLU, norms before, biases, tied head",
        config=OPT,
        felt=(Change(name="GELU", config={"activation_function": "gelu"}),),
        insensitive=r"k_proj\.bias",
    ),
    Case(
        name="opt_350m",
        seed=0,
        model_type="opt",
        covers="OPT 350M: norms after, no final norm, projections of narrower embeddings",
        config=OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        felt=(Change(name="norms before", config={"do_layer_norm_before": True}),),
        insensitive=r"k_proj\.bias",
    ),
    Case(
        name="opt_galactica",
        seed=1,
        model_type="opt",
        covers="Galactica: OPT without biases and norm weights, exact GELU",
        config=OPT
        | {
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "activation_function": "gelu",
        },
        felt=(Change(name="tanh GELU", config={"activation_function": "gelu_pytorch_tanh"}),),
    ),
    Case(
        name="gpt2",
        seed=1,
        model_type="gpt2",
        covers="GPT-2: weights stored [in, out], learned positions, gelu_new, tied head",
        config=GPT2,
        felt=(Change(name="exact GELU", config={"activation_function": "gelu"}),),
    ),
    Case(
        name="gpt2_scaled",
        seed=1,
        model_type="gpt2",
        covers="GPT-2: scale_attn_by_inverse_layer_idx, scale_attn_weights false",
        config=GPT2
        | {
            "scale_attn_by_inverse_layer_idx": True,
            "scale_attn_weights": False,
        },
        felt=(
            Change(
                name="same scale in all layers", config={"scale_attn_by_inverse_layer_idx": False}
            ),
            Change(name="scale from the head size", config={"scale_attn_weights": True}),
        ),
        unfelt=(Change(name="order of attention", config={"reorder_and_upcast_attn": True}),),
    ),
    Case(
        name="gpt_neox",
        seed=0,
        model_type="gpt_neox",
        covers="GPT-NeoX and Pythia: parallel residual with two norms, rotary_pct 0.25, q, k, v "
        "interleaved by head",
        config=NEOX | rope(900.0, partial_rotary_factor=0.25),
        felt=(
            Change(name="sequential residual", config={"use_parallel_residual": False}),
            Change(name="RoPE of whole heads", config=rope(900.0, partial_rotary_factor=1.0)),
            Change(name="tanh GELU", config={"hidden_act": "gelu_pytorch_tanh"}),
        ),
    ),
    Case(
        name="gpt_neox_sequential",
        seed=20,
        model_type="gpt_neox",
        covers="GPT-NeoX: sequential residual, no attention bias, rotary_pct 1, fast GELU, tied",
        config=NEOX
        | {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            "tie_word_embeddings": True,
        }
        | rope(900.0, partial_rotary_factor=1.0),
        felt=(
            Change(name="parallel residual", config={"use_parallel_residual": True}),
            Change(name="exact GELU", config={"hidden_act": "gelu"}),
        ),
    ),
    Case(
        name="olmo2",
        seed=1,
        model_type="olmo2",
        covers="OLMo-2: norms after attention and MLP only, q and k norms across all heads",
        config=OLMO2 | {"num_key_value_heads": 1},
    ),
    Case(
        name="olmo2_bias",
        seed=1,
        model_type="olmo2",
        covers="OLMo-2: attention_bias, two key heads, yarn",
        config=OLMO2
        | {"attention_bias": True, "max_position_embeddings": 128}
        | rope(900.0, **YARN),
        felt=(
            Change(name="no attention bias", config={"attention_bias": False}),
            Change(name="default RoPE", config=rope(900.0)),
        ),
    ),
    Case(
        name="stablelm",
        seed=2,
        model_type="stablelm",
        covers="StableLM: layer norms, partial RoPE of a quarter, use_qkv_bias",
        config=STABLELM
        | {"use_qkv_bias": True, "tie_word_embeddings": True}
        | rope(900.0, partial_rotary_factor=0.25),
        felt=(
            Change(name="no biases", config={"use_qkv_bias": False}),
            Change(name="RoPE of half heads", config=rope(900.0, partial_rotary_factor=0.5)),
            Change(name="parallel residual", config={"use_parallel_residual": True}),
        ),
    ),
    Case(
        name="stablelm_parallel",
        seed=2,
        model_type="stablelm",
        covers="StableLM 2 12B: parallel residual with one norm, q and k norms of each head",
        config=STABLELM
        | {
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        }
        | rope(900.0, partial_rotary_factor=0.5),
        felt=(Change(name="no q and k norms", config={"qk_layernorm": False}),),
    ),
    Case(
        name="gpt_oss",
        seed=2,
        model_type="gpt_oss",
        covers="gpt-oss: sinks, windows in even layers, clamped gate, router bias, softmax over "
        "the chosen experts, yarn without truncation",
        config=GPT_OSS | rope(150.0, **YARN, truncate=False),
        felt=(
            Change(name="no sinks", fill={"sinks": -1e9}),
            Change(name="no windows", config={"layer_types": ["full_attention"] * 2}),
            Change(
                name="window in the other layer",
                config={"layer_types": ["full_attention", "sliding_attention"]},
            ),
            Change(name="window of 13", config={"sliding_window": 13}),
            Change(name="no clamp", config={"swiglu_limit": 1e9}),
            Change(name="another swiglu_alpha", config={"swiglu_alpha": 1.0}),
            Change(name="default RoPE", config=rope(150.0)),
            Change(name="yarn with truncation", config=rope(150.0, **YARN, truncate=True)),
            Change(name="no attention bias", config={"attention_bias": False}),
        ),
        unfelt=(Change(name="hidden_act", config={"hidden_act": "gelu"}),),
        generation={"bos_token_id": 1, "eos_token_id": [2, 12, 80], "pad_token_id": 0},
        note="The checkpoint holds plain float32 experts; MXFP4 blocks are another format.",
    ),
)
