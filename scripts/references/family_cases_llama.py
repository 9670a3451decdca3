"""Cases of Llama with each RoPE type, Mistral, Mixtral and SmolLM3."""

from __future__ import annotations

from family_case import TINY, Case, Change, rope

LLAMA = dict(TINY) | {"rms_norm_eps": 0.02} | rope(700.0)

# Wide heads have more frequencies, which the RoPE types treat differently.
WIDE = LLAMA | {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}

PLAIN_ROPE = Change(name="default RoPE", config=rope(700.0))

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 48,
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.5, 1.7, 2.0, 2.2],
    "long_factor": [1.3, 1.8, 2.5, 3.1, 4.2, 5.0, 7.5, 9.0],
}

CACHE_NOTE = (
    "token_ids is what generate gives with its cache: keys stay as they were rotated when they "
    "were computed. without_cache rotates all keys again at each step, frozen_at_prompt keeps "
    "the frequencies of the prompt's length and frozen_at_total those of the prompt's length "
    "plus the new tokens, for all positions of the request."
)

CASES = (
    Case(
        name="llama",
        seed=0,
        model_type="llama",
        covers="Llama: grouped query heads, RMS norms, SiLU, untied head, several EOS ids",
        config=LLAMA | {"intermediate_size": 24, "num_key_value_heads": 1},
        felt=(Change(name="tied head", config={"tie_word_embeddings": True}),),
        unfelt=(
            Change(
                name="partial_rotary_factor (the Llama classes ignore it)",
                config=rope(700.0, partial_rotary_factor=0.5),
            ),
        ),
        generation={
            "bos_token_id": 1,
            "eos_token_id": [2, 5, 11, 40, 77],
            "temperature": 0.7,
            "top_p": 0.9,
            "do_sample": True,
        },
        note="generation_config.json names more EOS ids than config.json; stopped_token_ids is "
        "what its ids leave of the greedy tokens.",
    ),
    Case(
        name="llama_tied",
        seed=1,
        model_type="llama",
        covers="Llama: tied head, as many key heads as query heads",
        config=LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    Case(
        name="llama_bias",
        seed=1,
        model_type="llama",
        covers="Llama: attention_bias (q, k, v, o), mlp_bias, hidden_act gelu",
        config=LLAMA
        | {
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
        },
        felt=(
            Change(name="no attention bias", config={"attention_bias": False}),
            Change(name="no MLP bias", config={"mlp_bias": False}),
            Change(name="SiLU", config={"hidden_act": "silu"}),
            Change(name="tanh GELU", config={"hidden_act": "gelu_pytorch_tanh"}),
        ),
    ),
    Case(
        name="llama_head_dim",
        seed=0,
        model_type="llama",
        covers="Llama: head_dim other than hidden_size / num_attention_heads",
        config=LLAMA | {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    Case(
        name="llama_rope_linear",
        seed=0,
        model_type="llama",
        covers="RoPE linear",
        config=WIDE | rope(700.0, rope_type="linear", factor=4.0),
        felt=(PLAIN_ROPE,),
    ),
    Case(
        name="llama_rope_dynamic_below",
        seed=0,
        model_type="llama",
        covers="RoPE dynamic NTK, never beyond max_position_embeddings: like default",
        config=WIDE | rope(700.0, rope_type="dynamic", factor=4.0),
        unfelt=(PLAIN_ROPE,),
    ),
    Case(
        name="llama_rope_dynamic",
        seed=0,
        model_type="llama",
        covers="RoPE dynamic NTK beyond max_position_embeddings, in the prompt and while decoding",
        config=WIDE
        | {"max_position_embeddings": 32}
        | rope(700.0, rope_type="dynamic", factor=4.0),
        felt=(
            PLAIN_ROPE,
            Change(name="another factor", config=rope(700.0, rope_type="dynamic", factor=2.0)),
        ),
        cache_matters=True,
        fixed_rope=True,
        note=CACHE_NOTE + " A model of transformers remembers the longest length it has seen; "
        "each result here comes from a model that has seen no other prompt.",
    ),
    Case(
        name="llama_rope_yarn",
        seed=0,
        model_type="llama",
        covers="RoPE yarn: default attention factor and betas",
        config=WIDE | rope(700.0, **YARN),
        felt=(
            PLAIN_ROPE,
            Change(name="attention factor 1", config=rope(700.0, **YARN, attention_factor=1.0)),
            Change(name="not truncated", config=rope(700.0, **YARN, truncate=False)),
        ),
    ),
    Case(
        name="llama_rope_yarn_no_truncate",
        seed=0,
        model_type="llama",
        covers="RoPE yarn: truncate false",
        config=WIDE | rope(700.0, **YARN, truncate=False),
        felt=(PLAIN_ROPE, Change(name="truncated", config=rope(700.0, **YARN))),
    ),
    Case(
        name="llama_rope_yarn_mscale",
        seed=0,
        model_type="llama",
        covers="RoPE yarn: mscale and mscale_all_dim",
        config=WIDE | rope(700.0, **YARN, mscale=1.2, mscale_all_dim=0.4),
        felt=(
            PLAIN_ROPE,
            Change(name="no mscale", config=rope(700.0, **YARN)),
            Change(
                name="equal mscales", config=rope(700.0, **YARN, mscale=1.2, mscale_all_dim=1.2)
            ),
        ),
    ),
    Case(
        name="llama_rope_yarn_factors",
        seed=0,
        model_type="llama",
        covers="RoPE yarn: attention_factor, beta_fast and beta_slow given",
        config=WIDE | rope(700.0, **YARN, attention_factor=1.3, beta_fast=3.0, beta_slow=0.25),
        felt=(
            PLAIN_ROPE,
            Change(
                name="default attention factor",
                config=rope(700.0, **YARN, beta_fast=3.0, beta_slow=0.25),
            ),
            Change(name="default betas", config=rope(700.0, **YARN, attention_factor=1.3)),
        ),
    ),
    Case(
        name="llama_rope_llama3",
        seed=0,
        model_type="llama",
        covers="RoPE llama3: kept, blended and divided frequencies",
        config=WIDE
        | rope(
            700.0,
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        felt=(
            PLAIN_ROPE,
            Change(
                name="other frequency factors",
                config=rope(
                    700.0,
                    rope_type="llama3",
                    factor=8.0,
                    low_freq_factor=2.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=64,
                ),
            ),
        ),
        generation={"bos_token_id": 1, "eos_token_id": [2, 9, 30, 61]},
    ),
    Case(
        name="llama_rope_longrope",
        seed=0,
        model_type="llama",
        covers="RoPE longrope in Llama: short and long factors, factor given",
        config=WIDE | rope(700.0, **LONGROPE, factor=3.0),
        felt=(
            PLAIN_ROPE,
            Change(
                name="attention factor 1",
                config=rope(700.0, **LONGROPE, factor=3.0, attention_factor=1.0),
            ),
            Change(name="factor from the lengths", config=rope(700.0, **LONGROPE)),
        ),
        cache_matters=True,
        fixed_rope=True,
        note=CACHE_NOTE + " Only the prompt of 40 tokens passes position 48 while decoding.",
    ),
    Case(
        name="mistral",
        seed=0,
        model_type="mistral",
        covers="Mistral: sliding window of 12 in all layers",
        config=LLAMA | {"sliding_window": 12, "num_key_value_heads": 1},
        felt=(
            Change(name="no window", config={"sliding_window": None}),
            Change(name="window of 13", config={"sliding_window": 13}),
        ),
    ),
    Case(
        name="mistral_nemo",
        seed=1,
        model_type="mistral",
        covers="Mistral: no window, head_dim other than hidden_size / num_attention_heads",
        config=LLAMA
        | {
            "sliding_window": None,
            "head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    ),
    Case(
        name="mixtral",
        seed=0,
        model_type="mixtral",
        covers="Mixtral: 2 of 4 experts, softmax over all, weights that sum to 1, window of 16",
        config=LLAMA
        | {
            "intermediate_size": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "tie_word_embeddings": True,
        },
        felt=(
            Change(name="one expert", config={"num_experts_per_tok": 1}),
            Change(name="no window", config={"sliding_window": None}),
            Change(name="window of 17", config={"sliding_window": 17}),
        ),
    ),
    Case(
        name="smollm3",
        seed=0,
        model_type="smollm3",
        covers="SmolLM3: second layer without positions, tied head",
        config=LLAMA | {"no_rope_layer_interval": 2, "tie_word_embeddings": True},
        felt=(
            Change(name="RoPE in all layers", config={"no_rope_layers": [1, 1]}),
            Change(name="the other layer without", config={"no_rope_layers": [0, 1]}),
        ),
        unfelt=(Change(name="a window that isn't used", config={"sliding_window": 8}),),
    ),
    Case(
        name="smollm3_window",
        seed=2,
        model_type="smollm3",
        covers="SmolLM3: no_rope_layers given, window in the layer without positions, biases",
        config=LLAMA
        | {
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        felt=(
            Change(name="RoPE in all layers", config={"no_rope_layers": [1, 1]}),
            Change(name="no window", config={"use_sliding_window": False}),
            Change(
                name="window in all layers",
                config={"layer_types": ["sliding_attention", "sliding_attention"]},
            ),
            Change(name="window of 13", config={"sliding_window": 13}),
            Change(name="no attention bias", config={"attention_bias": False}),
            Change(name="no MLP bias", config={"mlp_bias": False}),
        ),
    ),
)
