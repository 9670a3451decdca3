"""A model with its features in another order: the same function, in other groups of weights.

A checkpoint whose weights were quantized in groups of 32 can be quantized again in the same groups
almost without loss, which says nothing about weights that weren't. Put in another order, each group
holds weights of many of the old ones, whose steps differ, while every number stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.registry import FAMILIES
from fastgen_jax.models.weights.checkpoint import open_checkpoint


def shuffle_features(
    model: ModelConfig, tensors: Mapping[str, np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    """The tensors of ``tensor_shapes`` with width, feed-forward and values in another order.

    What leaves a layer is permuted as what enters the next one is, so the model computes the same
    but for the order of sums.
    """
    rng = np.random.default_rng(seed)
    width = rng.permutation(model.hidden_size)
    inner = rng.permutation(model.intermediate_size)
    in_head = rng.permutation(model.head_dim)

    def by_head(num_heads: int) -> np.ndarray:
        return (np.arange(num_heads)[:, None] * model.head_dim + in_head).reshape(-1)

    keep = slice(None)
    # The order of each matrix's inputs and outputs; queries and keys keep theirs, for the rotation.
    orders = {
        "q": (width, keep),
        "k": (width, keep),
        "v": (width, by_head(model.num_kv_heads)),
        "o": (by_head(model.num_heads), width),
        "gate": (width, inner),
        "up": (width, inner),
        "down": (inner, width),
        "embed": (keep, width),
        "head": (keep, width),
    }
    shuffled: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        first, second = orders.get(name.split(".")[-1], (width, None))
        taken = values[first] if second is None else values[first][:, second]
        shuffled[name] = np.ascontiguousarray(taken)
    return shuffled


def write_shuffled(source: Path, directory: Path, seed: int = 0) -> None:
    """Write a checkpoint as a Hugging Face directory in float32 with its features shuffled.

    It has no tokenizer: prompts are given to it as token ids.
    """
    with open_checkpoint(source) as checkpoint:
        model = checkpoint.config
        tensors = dict(checkpoint.tensors(np.dtype(np.float32)))
    family = next(family for family in FAMILIES if family.architecture == model.architecture)
    shuffled = shuffle_features(model, tensors, seed)
    stored = {
        placement.stored_name: np.ascontiguousarray(
            shuffled[placement.name].T if placement.transpose else shuffled[placement.name]
        )
        for placement in family.hf_weights(model).placements
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(stored, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(_description(model)), encoding="utf-8")


def _description(model: ModelConfig) -> dict[str, object]:
    return {
        "architectures": [model.architecture],
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm.epsilon,
        "rope_theta": model.ropes[0].theta,
        "tie_word_embeddings": model.tie_word_embeddings,
        "eos_token_id": list(model.eos_token_ids),
    }
