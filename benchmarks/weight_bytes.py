"""Bytes of weights that one decode step has to read, however few tokens it computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf import GGUFReader

from fastgen_jax.models.config import ModelConfig

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def dense_weight_bytes(model: ModelConfig, itemsize: int) -> int:
    """Every weight at the same size; an embedding that isn't also the head is only looked up."""
    looked_up = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    return (model.num_parameters - looked_up) * itemsize


def gguf_weight_bytes(path: Path) -> int:
    """All tensors as the file packs them, with the same exception."""
    sizes = {str(tensor.name): int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    return read_bytes_of_tensors(sizes)


def read_bytes_of_tensors(sizes: Mapping[str, int]) -> int:
    """Sum of the tensors' sizes, less an embedding beside a head of its own."""
    return sum(sizes.values()) - (sizes.get(EMBEDDING, 0) if HEAD in sizes else 0)
