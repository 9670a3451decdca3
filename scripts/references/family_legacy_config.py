"""The config.json that transformers 4 wrote, which most published checkpoints have."""

from __future__ import annotations

from typing import Any


def legacy_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of transformers 5 with the names and forms of transformers 4."""
    legacy = {key: value for key, value in config.items() if key != "rope_parameters"}
    legacy["torch_dtype"] = legacy.pop("dtype", "float32")
    legacy["transformers_version"] = "4.46.0"
    model_type = config["model_type"]
    if model_type in ("qwen2", "qwen3", "qwen2_moe", "gemma2", "olmo2", "smollm3"):
        legacy.pop("layer_types", None)
    if model_type in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe") and not legacy["sliding_window"]:
        legacy["sliding_window"] = 8
    if model_type == "qwen3_moe":
        legacy["num_experts"] = legacy.pop("num_local_experts")
    if model_type == "gemma":
        legacy["hidden_act"] = "gelu"
    if model_type == "falcon" and legacy.get("num_ln_in_parallel_attn") == 2:
        del legacy["num_ln_in_parallel_attn"]
    if model_type in ("llama", "mistral") and legacy["head_dim"] == default_head_dim(config):
        del legacy["head_dim"]
    rope = config.get("rope_parameters")
    if rope is None:
        return legacy
    if model_type == "gemma3_text":
        return legacy | gemma3_rope(config["layer_types"], rope, legacy)
    return legacy | flat_rope(rope, model_type)


def default_head_dim(config: dict[str, Any]) -> int:
    """Return the head size that follows from the width."""
    return config["hidden_size"] // config["num_attention_heads"]


def flat_rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Return rope_theta, rope_scaling and the rotated part of each head."""
    neox = model_type == "gpt_neox"
    rest = dict(rope)
    fields: dict[str, Any] = {"rotary_emb_base" if neox else "rope_theta": rest.pop("rope_theta")}
    if "partial_rotary_factor" in rest:
        name = "rotary_pct" if neox else "partial_rotary_factor"
        fields[name] = rest.pop("partial_rotary_factor")
    if model_type == "phi3":
        rest.pop("original_max_position_embeddings", None)
        rest["type"] = rest.pop("rope_type")
        fields["rope_scaling"] = None if rest["type"] == "default" else rest
        return fields
    fields["rope_scaling"] = None if rest["rope_type"] == "default" else rest
    return fields


def gemma3_rope(
    layer_types: list[str], rope: dict[str, Any], legacy: dict[str, Any]
) -> dict[str, Any]:
    """Return both thetas, and the pattern of windows instead of each layer's type."""
    legacy.pop("layer_types")
    scaling = {key: value for key, value in rope["full_attention"].items() if key != "rope_theta"}
    return {
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "sliding_window_pattern": layer_types.index("full_attention") + 1,
    }
