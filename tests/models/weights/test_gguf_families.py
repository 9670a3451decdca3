"""GGUF files of every family hold what the Hugging Face checkpoints hold that they are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.rope_config import FrequencyFactors, Llama3Scaling, LongRopeScaling
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from tests.models.weights.conftest import interleave

FAMILIES = Path(__file__).parents[2] / "references" / "families"
Arrays = dict[str, np.ndarray]

NAMES = {
    r"model\.embed_tokens": "token_embd",
    r"model\.norm": "output_norm",
    r"lm_head": "output",
    r"input_layernorm": "attn_norm",
    r"self_attn\.(q|k|v)_proj": r"attn_\1",
    r"self_attn\.o_proj": "attn_output",
    r"self_attn\.qkv_proj": "attn_qkv",
    r"self_attn\.(q|k)_norm": r"attn_\1_norm",
    r"mlp\.(gate|up|down)_proj": r"ffn_\1",
    r"mlp\.gate_up_proj": "ffn_up",
    r"block_sparse_moe\.gate": "ffn_gate_inp",
    r"pre_feedforward_layernorm": "ffn_norm",
    r"post_feedforward_layernorm": "post_ffw_norm",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A reference, the architecture that its file states, and what it states beside the sizes."""

    name: str
    architecture: str
    fields: Mapping[str, object]


CASES = (
    Case(name="llama", architecture="llama", fields={}),
    Case(name="llama_rope_llama3", architecture="llama", fields={}),
    Case(
        name="llama_rope_linear",
        architecture="llama",
        fields={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    Case(
        name="llama_rope_yarn",
        architecture="llama",
        fields={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    Case(name="mistral_nemo", architecture="llama", fields={}),
    Case(name="mixtral", architecture="llama", fields={"expert_count": 4, "expert_used_count": 2}),
    Case(name="qwen2", architecture="qwen2", fields={}),
    Case(name="qwen3", architecture="qwen3", fields={}),
    Case(name="gemma", architecture="gemma", fields={}),
    Case(
        name="gemma2",
        architecture="gemma2",
        fields={
            "attention.sliding_window": 12,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    Case(
        name="gemma3",
        architecture="gemma3",
        fields={"attention.sliding_window": 12, "attention.sliding_window_pattern": 3},
    ),
    Case(name="phi3", architecture="phi3", fields={"attention.sliding_window": 12}),
    Case(name="phi3_longrope", architecture="phi3", fields={}),
)


def metadata(case: Case, config: ModelConfig) -> dict[str, object]:
    """What a file states of the model."""
    sizes: dict[str, object] = {
        "vocab_size": config.vocab_size,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm.epsilon,
        "rope.freq_base": config.ropes[0].theta,
        "rope.dimension_count": config.ropes[0].rotary_dim,
    }
    for local in config.ropes[1:]:
        sizes["rope.freq_base_swa"] = local.theta
    scaling = config.ropes[0].scaling
    if isinstance(scaling, LongRopeScaling):
        sizes["rope.scaling.original_context_length"] = scaling.original_length
        sizes["rope.scaling.attn_factor"] = scaling.attention_factor
    stated = {f"{case.architecture}.{k}": v for k, v in (sizes | dict(case.fields)).items()}
    ends = {"tokenizer.ggml.bos_token_id": config.bos_token_id}
    return {"general.architecture": case.architecture, **stated, **ends}


def gguf_name(name: str, *, has_post_norms: bool) -> str:
    """The name of Hugging Face's tensor in a GGUF file."""
    name = re.sub(r"^model\.layers\.", "blk.", name)
    behind = "post_attention_norm" if has_post_norms else "ffn_norm"
    name = name.replace("post_attention_layernorm", behind)
    for pattern, replacement in NAMES.items():
        name = re.sub(rf"(?<![a-z_]){pattern}(?=\.)", replacement, name)
    return name


def arrays(case: Case, config: ModelConfig, stored: Arrays) -> Arrays:
    """The tensors as the converter of llama.cpp lays them out."""
    found: Arrays = {}
    has_post_norms = "attn_post_norm" in config.norms
    for name, values in stored.items():
        if case.architecture.startswith("gemma") and "norm" in name:
            values = values + 1
        if case.architecture == "llama" and re.search(r"self_attn\.[qk]_proj", name):
            heads = config.num_heads if "q_proj" in name else config.num_kv_heads
            values = interleave(values, heads)
        found[gguf_name(name, has_post_norms=has_post_norms)] = values
    kinds = {"w1": "gate", "w2": "down", "w3": "up"}
    for layer in range(config.num_layers):
        for stored_kind, kind in kinds.items():
            block = f"blk.{layer}.block_sparse_moe.experts."
            names = [f"{block}{expert}.{stored_kind}.weight" for expert in range(4)]
            if names[0] in found:
                experts = np.stack([found.pop(name) for name in names])
                found[f"blk.{layer}.ffn_{kind}_exps.weight"] = experts
    scaling = config.ropes[0].scaling
    if isinstance(scaling, LongRopeScaling):
        found["rope_factors_short.weight"] = np.array(scaling.short_factors, np.float32)
        found["rope_factors_long.weight"] = np.array(scaling.long_factors, np.float32)
    if isinstance(scaling, Llama3Scaling):
        found["rope_freqs.weight"] = np.arange(1, 1 + config.head_dim // 2).astype(np.float32)
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def as_stated(case: Case, config: ModelConfig) -> ModelConfig:
    """The configuration less what a file can't say."""
    ropes = config.ropes
    if isinstance(ropes[0].scaling, Llama3Scaling):
        factors = tuple(float(i) for i in range(1, 1 + config.head_dim // 2))
        ropes = (replace(ropes[0], scaling=FrequencyFactors(factors=factors)),)
    if isinstance(ropes[0].scaling, LongRopeScaling):
        rounded = {
            field: tuple(float(np.float32(f)) for f in getattr(ropes[0].scaling, field))
            for field in ("short_factors", "long_factors")
        }
        factor = float(str(np.float32(ropes[0].scaling.attention_factor)))
        scaling = replace(ropes[0].scaling, **rounded, attention_factor=factor)
        ropes = (replace(ropes[0], scaling=scaling),)
    attention = config.attention
    if case.architecture in ("gemma2", "gemma3"):
        attention = replace(attention, scale=config.head_dim**-0.5)
    architecture, layers = config.architecture, config.layers
    if case.architecture == "llama":
        architecture = "LlamaForCausalLM"
        layers = tuple(replace(layer, window=None) for layer in layers)
    return replace(
        config,
        architecture=architecture,
        layers=layers,
        ropes=ropes,
        attention=attention,
        eos_token_ids=(),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_file_means_what_its_source_means(
    case: Case,
    tmp_path: Path,
    write_gguf: Callable[[Path, Mapping[str, object], Arrays], Path],
) -> None:
    source = FAMILIES / case.name
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        expected = dict(checkpoint.tensors(np.dtype(np.float32)))
    stored = load_file(source / "model.safetensors")
    path = write_gguf(tmp_path / "model.gguf", metadata(case, config), arrays(case, config, stored))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config == as_stated(case, config)
        found = dict(checkpoint.tensors(np.dtype(np.float32)))
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
