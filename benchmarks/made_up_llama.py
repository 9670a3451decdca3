"""A Llama of random weights, written as safetensors shards with an index."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSizes:
    """Sizes of a Llama, by the letters of docs/architecture.md."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def config_json(self) -> dict[str, object]:
        """The description that transformers would write."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        }

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """A layer's tensors as transformers names and stores them."""
        return {
            "self_attn.q_proj": (self.heads * self.head_dim, self.width),
            "self_attn.k_proj": (self.kv_heads * self.head_dim, self.width),
            "self_attn.v_proj": (self.kv_heads * self.head_dim, self.width),
            "self_attn.o_proj": (self.width, self.heads * self.head_dim),
            "mlp.gate_proj": (self.feed_forward, self.width),
            "mlp.up_proj": (self.feed_forward, self.width),
            "mlp.down_proj": (self.width, self.feed_forward),
            "input_layernorm": (self.width,),
            "post_attention_layernorm": (self.width,),
        }


def write_llama(directory: Path, sizes: LlamaSizes, *, dtype: str, seed: int = 0) -> None:
    """Writes config.json, a shard for each layer and one for the rest, and their index."""
    kind = np.dtype(np.float32) if dtype == "float32" else np.dtype(ml_dtypes.bfloat16)
    rng = np.random.default_rng(seed)
    shards = [
        {f"model.layers.{layer}.{name}.weight": shape for name, shape in layer_shapes.items()}
        for layer, layer_shapes in enumerate([sizes.layer_shapes()] * sizes.layers)
    ]
    embedding = (sizes.vocabulary, sizes.width)
    shards.append(
        {
            "model.embed_tokens.weight": embedding,
            "model.norm.weight": (sizes.width,),
            "lm_head.weight": embedding,
        }
    )
    shard_of: dict[str, str] = {}
    for number, shapes in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        arrays = {
            name: rng.standard_normal(shape, np.float32).astype(kind)
            for name, shape in shapes.items()
        }
        save_file(arrays, directory / file)
        shard_of |= dict.fromkeys(arrays, file)
    index = {"metadata": {}, "weight_map": shard_of}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    description = json.dumps(sizes.config_json())
    (directory / "config.json").write_text(description, encoding="utf-8")
