"""Cases of Qwen2, Qwen3, their mixtures of experts, and Gemma 1, 2 and 3."""

from __future__ import annotations

from family_case import TINY, Case, Change, rope

QWEN = dict(TINY) | {"rms_norm_eps": 0.02} | rope(900.0)

MOE = QWEN | {
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": True,
}

QWEN2_MOE = MOE | {"shared_expert_intermediate_size": 16}

GEMMA = dict(TINY) | {
    "rms_norm_eps": 0.02,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def gemma3_rope(factor: float | None) -> dict[str, object]:
    """Return both kinds of layers' RoPE, linear with this factor in global layers if given."""
    scaled = {} if factor is None else {"rope_type": "linear", "factor": factor}
    return {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0} | scaled,
        }
    }


GEMMA3 = GEMMA | {
    "num_hidden_layers": 3,
    "head_dim": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 12,
    "query_pre_attn_scalar": 16,
}

CASES = (
    Case(
        name="qwen2",
        seed=1,
        model_type="qwen2",
        covers="Qwen2: biases of q, k and v, a window that isn't used",
        config=QWEN
        | {
            "use_sliding_window": False,
            "sliding_window": 8,
            "max_window_layers": 0,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
        },
        note="transformers saves the unused window as null; legacy_config.json still names it.",
    ),
    Case(
        name="qwen2_window",
        seed=0,
        model_type="qwen2",
        covers="Qwen2: sliding window of 12 from layer max_window_layers = 1 on, tied head",
        config=QWEN
        | {
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        felt=(
            Change(name="no window", config={"use_sliding_window": False}),
            Change(name="window in all layers", config={"max_window_layers": 0}),
            Change(
                name="window in the other layer",
                config={"layer_types": ["sliding_attention", "full_attention"]},
            ),
            Change(name="window of 13", config={"sliding_window": 13}),
        ),
    ),
    Case(
        name="qwen3",
        seed=1,
        model_type="qwen3",
        covers="Qwen3: q and k norms of each head, head_dim other than hidden_size / heads",
        config=QWEN
        | {
            "head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    ),
    Case(
        name="qwen3_window",
        seed=9,
        model_type="qwen3",
        covers="Qwen3: attention_bias, window of 16 from layer 1 on",
        config=QWEN
        | {
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        felt=(
            Change(name="no window", config={"use_sliding_window": False}),
            Change(name="no attention bias", config={"attention_bias": False}),
        ),
    ),
    Case(
        name="qwen2_moe",
        seed=0,
        model_type="qwen2_moe",
        covers="Qwen2-MoE: gated shared expert, norm_topk_prob false",
        config=QWEN2_MOE | {"norm_topk_prob": False},
        felt=(
            Change(name="weights that sum to 1", config={"norm_topk_prob": True}),
            Change(name="one expert", config={"num_experts_per_tok": 1}),
        ),
    ),
    Case(
        name="qwen2_moe_norm",
        seed=0,
        model_type="qwen2_moe",
        covers="Qwen2-MoE: norm_topk_prob true, decoder_sparse_step 2 (layer 0 is dense)",
        config=QWEN2_MOE | {"norm_topk_prob": True, "decoder_sparse_step": 2},
        felt=(
            Change(name="weights as they are", config={"norm_topk_prob": False}),
            Change(name="experts in all layers", config={"decoder_sparse_step": 1}),
        ),
    ),
    Case(
        name="qwen2_moe_mlp_only",
        seed=0,
        model_type="qwen2_moe",
        covers="Qwen2-MoE: mlp_only_layers [1], no biases, window of 12 in even layers",
        config=QWEN2_MOE
        | {
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 2,
        },
        felt=(
            Change(name="experts in all layers", config={"mlp_only_layers": []}),
            Change(name="no window", config={"use_sliding_window": False}),
            Change(
                name="window in the other layer",
                config={"layer_types": ["full_attention", "sliding_attention"]},
            ),
        ),
        note="Qwen2-MoE gives the window to even layers below max_window_layers, unlike Qwen2, "
        "which gives it to all layers from max_window_layers on.",
    ),
    Case(
        name="qwen3_moe",
        seed=0,
        model_type="qwen3_moe",
        covers="Qwen3-MoE: q and k norms, no shared expert, norm_topk_prob false",
        config=MOE | {"head_dim": 8, "norm_topk_prob": False},
        felt=(Change(name="weights that sum to 1", config={"norm_topk_prob": True}),),
    ),
    Case(
        name="qwen3_moe_norm",
        seed=0,
        model_type="qwen3_moe",
        covers="Qwen3-MoE: norm_topk_prob true, mlp_only_layers [0], attention_bias",
        config=MOE
        | {"head_dim": 8, "norm_topk_prob": True, "mlp_only_layers": [0], "attention_bias": True},
        felt=(
            Change(name="weights as they are", config={"norm_topk_prob": False}),
            Change(name="no attention bias", config={"attention_bias": False}),
            Change(name="experts in all layers", config={"mlp_only_layers": []}),
        ),
    ),
    Case(
        name="qwen3_moe_window",
        seed=2,
        model_type="qwen3_moe",
        covers="Qwen3-MoE: window of 12 in all layers, decoder_sparse_step 2",
        config=MOE
        | {
            "head_dim": 8,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 12,
        },
        felt=(
            Change(name="no window", config={"use_sliding_window": False}),
            Change(name="experts in all layers", config={"decoder_sparse_step": 1}),
        ),
        note="Qwen3-MoE gives the window to all layers; it has no max_window_layers.",
    ),
    Case(
        name="gemma",
        seed=1,
        model_type="gemma",
        covers="Gemma 1: norms of 1 + weight, scaled embeddings, tanh GELU, one key head, wide",
        config=GEMMA
        | rope(900.0)
        | {"head_dim": 16, "num_attention_heads": 3, "num_key_value_heads": 1},
        felt=(Change(name="SiLU", config={"hidden_act": "silu"}),),
        unfelt=(
            Change(name="hidden_act gelu (read as its tanh form)", config={"hidden_act": "gelu"}),
        ),
        note="legacy_config.json names hidden_act gelu, as released; it means the tanh form.",
        generation={"bos_token_id": 2, "eos_token_id": [1, 17, 50], "pad_token_id": 0},
    ),
    Case(
        name="gemma2",
        seed=3,
        model_type="gemma2",
        covers="Gemma 2: softcaps of scores and logits, windows in even layers, post norms, "
        "query_pre_attn_scalar",
        config=GEMMA
        | rope(900.0)
        | {
            "head_dim": 8,
            "sliding_window": 12,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
        felt=(
            Change(name="no softcap of scores", config={"attn_logit_softcapping": None}),
            Change(name="no softcap of logits", config={"final_logit_softcapping": None}),
            Change(name="scale from head_dim", config={"query_pre_attn_scalar": 8}),
            Change(name="no windows", config={"layer_types": ["full_attention"] * 2}),
            Change(
                name="window in the other layer",
                config={"layer_types": ["full_attention", "sliding_attention"]},
            ),
            Change(name="window of 13", config={"sliding_window": 13}),
            Change(name="SiLU", config={"hidden_activation": "silu"}),
        ),
    ),
    Case(
        name="gemma3",
        seed=0,
        model_type="gemma3_text",
        covers="Gemma 3 text: q and k norms, two thetas, every third layer global",
        config=GEMMA3 | gemma3_rope(None),
        felt=(
            Change(name="no windows", config={"layer_types": ["full_attention"] * 3}),
            Change(name="windows in all layers", config={"layer_types": ["sliding_attention"] * 3}),
            Change(name="window of 13", config={"sliding_window": 13}),
            Change(name="scale from head_dim", config={"query_pre_attn_scalar": 8}),
            Change(name="SiLU", config={"hidden_activation": "silu"}),
        ),
        unfelt=(
            Change(
                name="attn_logit_softcapping (Gemma 3 ignores it)",
                config={"attn_logit_softcapping": 2.0},
            ),
        ),
        generation={"bos_token_id": 2, "eos_token_id": [1, 6, 33], "pad_token_id": 0},
    ),
    Case(
        name="gemma3_linear",
        seed=0,
        model_type="gemma3_text",
        covers="Gemma 3 text: linear RoPE in global layers, softcap of logits",
        config=GEMMA3
        | gemma3_rope(8.0)
        | {
            "final_logit_softcapping": 5.0,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        felt=(
            Change(name="default RoPE", config=gemma3_rope(None)),
            Change(name="no softcap of logits", config={"final_logit_softcapping": None}),
        ),
    ),
)
