"""The FLOPs that a step of prompts needs; a multiplication with its addition counts as two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.tensors import EXPERTS, MATRICES, layer_tensors


def prefill_flops(model: ModelConfig, lengths: Sequence[int]) -> int:
    """Of whole prompts in one step, each with one row of logits: products and attention.

    Norms, rotation and sampling are left out, as is what pads a step. Of a mixture, the experts
    that a token goes to count, whatever the device computes.
    """
    layers = [layer_tensors(model, index).shapes for index in range(model.num_layers)]
    weights = sum(
        math.prod(shape) for shapes in layers for name, shape in shapes.items() if name in MATRICES
    )
    for shapes in layers:
        experts = (shape for name, shape in shapes.items() if name in EXPERTS)
        weights += sum(math.prod(shape[1:]) * _chosen(model) for shape in experts)
    head = model.vocab_size * (model.embedding_size or model.hidden_size)
    pairs = sum(_pairs(length, layer.window) for layer in model.layers for length in lengths)
    attention = 4 * model.num_heads * model.head_dim * pairs
    return 2 * sum(lengths) * weights + 2 * len(lengths) * head + attention


def _chosen(model: ModelConfig) -> int:
    return 0 if model.moe is None else model.moe.top_k


def _pairs(length: int, window: int | None) -> int:
    """Queries with the keys that they see, their own included."""
    reach = length if window is None else min(window, length)
    return reach * (reach + 1) // 2 + (length - reach) * reach
