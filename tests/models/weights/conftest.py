"""A small Llama, written as GGUF or as a Hugging Face directory the way each test wants it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from fastgen_jax.models.config import ModelConfig, llama_config
from fastgen_jax.models.tensors import tensor_shapes

Arrays = dict[str, np.ndarray]

# Every stored line has 256 values, the group of the K-quants.
CONFIG = llama_config(
    vocab_size=24,
    hidden_size=256,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_ids=(2,),
)

METADATA: dict[str, object] = {
    "llama.vocab_size": 24,
    "llama.context_length": 128,
    "llama.embedding_length": 256,
    "llama.block_count": 2,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 64,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.tokens": [f"<{index}>" for index in range(24)],
    "tokenizer.ggml.scores": [0.0] * 24,
    "tokenizer.ggml.token_type": [1] * 24,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ messages }} é",
}

HF_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 24,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

GGUF_NAMES = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "embed": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
}
HF_NAMES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
}


def interleave(lines: np.ndarray, heads: int) -> np.ndarray:
    """Put q or k weights [out, in] in GGUF's order: halves of a head become neighbours."""
    halves = lines.reshape(heads, 2, -1, lines.shape[1])
    return halves.swapaxes(1, 2).reshape(lines.shape)


def gguf_arrays(weights: Arrays) -> Arrays:
    """Our tensors by GGUF's names and in its layout."""
    arrays: Arrays = {}
    for name, values in weights.items():
        part = name.split(".")[-1]
        stored = values.T if part in ["q", "k", "v", "o", "gate", "up", "down"] else values
        if part in ("q", "k"):
            heads = CONFIG.num_heads if part == "q" else CONFIG.num_kv_heads
            stored = interleave(stored, heads)
        prefix = f"blk.{name.split('.')[1]}." if "." in name else ""
        arrays[f"{prefix}{GGUF_NAMES[part]}.weight"] = np.ascontiguousarray(stored)
    return arrays


def hf_arrays(weights: Arrays) -> Arrays:
    """Our tensors by Hugging Face's names and in its layout."""
    arrays: Arrays = {}
    for name, values in weights.items():
        part = name.split(".")[-1]
        stored = values.T if part in ["q", "k", "v", "o", "gate", "up", "down"] else values
        prefix = f"model.layers.{name.split('.')[1]}." if "." in name else ""
        arrays[f"{prefix}{HF_NAMES[part]}.weight"] = np.ascontiguousarray(stored)
    return arrays


def write_gguf_file(path: Path, metadata: Mapping[str, object], arrays: Arrays) -> Path:
    """Write metadata, and arrays as F32 or, where they are (bytes, type) pairs, as they are."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            assert isinstance(value, list)
            writer.add_array(key, value)
    for name, values in arrays.items():
        if isinstance(values, tuple):
            writer.add_tensor(name, values[0], raw_dtype=values[1])
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return CONFIG


@pytest.fixture(scope="session")
def metadata() -> Mapping[str, object]:
    """GGUF metadata that describes ``tiny_config``."""
    return METADATA


@pytest.fixture(scope="session")
def weights() -> Arrays:
    """Random weights of ``tiny_config`` in our layout."""
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape, dtype=np.float32)
        for name, shape in tensor_shapes(CONFIG).items()
    }


@pytest.fixture(scope="session")
def as_gguf() -> Callable[[Arrays], Arrays]:
    return gguf_arrays


@pytest.fixture(scope="session")
def as_hf() -> Callable[[Arrays], Arrays]:
    return hf_arrays


@pytest.fixture(scope="session")
def write_gguf() -> Callable[[Path, Mapping[str, object], Arrays], Path]:
    return write_gguf_file


@pytest.fixture
def gguf_path(tmp_path: Path, weights: Arrays) -> Path:
    """A valid file with ``weights`` in float32."""
    return write_gguf_file(tmp_path / "model.gguf", METADATA, gguf_arrays(weights))


@pytest.fixture
def hf_directory(tmp_path: Path, weights: Arrays) -> Path:
    """A valid directory with ``weights`` in float32, in one file."""
    directory = tmp_path / "hf"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(HF_CONFIG))
    save_file(hf_arrays(weights), directory / "model.safetensors")
    return directory
