"""The requests that a step is imagined to carry, and the least that any engine must do for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.tensors import EMBEDDINGS, EXPERTS, MATRICES, split_name, tensor_shapes

ITEM_SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """What is in a step.

    Attributes:
        num_decodes: rows with one token.
        chunk: tokens of one prompt chunk beside them; 0 for none.
        context: keys of each decode row, its own included; the chunk ends at this position too.
    """

    num_decodes: int
    chunk: int
    context: int

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return self.num_decodes + self.chunk

    @property
    def num_rows(self) -> int:
        """Rows that are no padding."""
        return self.num_decodes + (self.chunk > 0)

    @property
    def live_keys(self) -> int:
        """Keys, and as many values, that a layer's attention must read for one kv head."""
        return self.num_decodes * self.context + (self.context if self.chunk else 0)

    @property
    def query_keys(self) -> int:
        """Pairs of a query and a key that it sees, for one query head."""
        first = self.context - self.chunk
        of_chunk = self.chunk * first + self.chunk * (self.chunk + 1) // 2
        return self.num_decodes * self.context + of_chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Bytes moved and FLOPs of matrix products, on one GPU."""

    num_bytes: int
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWork:
    """One layer's attention on one GPU.

    Attributes:
        page_bytes: every live key and value, read once for each kv head.
        other_bytes: queries in, results out.
        flops: of both products, for the pairs of query and key that see each other.
    """

    page_bytes: int
    other_bytes: int
    flops: int


def attention_work(
    model: ModelConfig, load: StepLoad, *, devices: int, dtype: str
) -> AttentionWork:
    """What one layer's attention must read and multiply on each of the GPUs."""
    item = ITEM_SIZES[dtype]
    heads, kv_heads = model.num_heads // devices, model.num_kv_heads // devices
    return AttentionWork(
        page_bytes=2 * load.live_keys * kv_heads * model.head_dim * item,
        other_bytes=2 * load.num_tokens * heads * model.head_dim * item,
        flops=4 * load.query_keys * heads * model.head_dim,
    )


def least_work(model: ModelConfig, load: StepLoad, *, devices: int, dtype: str) -> Work:
    """The least of a step on one GPU: each weight once, the live keys and values once, logits once.

    Of embeddings only the tokens' rows. FLOPs are those of the tokens that are no padding; of
    experts, those that a token goes to.
    """
    item = ITEM_SIZES[dtype]
    sizes = {name: math.prod(shape) for name, shape in tensor_shapes(model).items()}
    experts = sum(size for name, size in sizes.items() if split_name(name)[0] in EXPERTS)
    matrices = sum(size for name, size in sizes.items() if split_name(name)[0] in MATRICES)
    looked_up = sum(sizes.get(name, 0) for name in (*EMBEDDINGS, "positions"))
    vectors = sum(sizes.values()) - experts - matrices - looked_up
    head = model.vocab_size * (model.embedding_size or model.hidden_size) // devices
    in_layers = (matrices + experts) // devices
    share = 1.0 if model.moe is None else model.moe.top_k / model.moe.num_experts
    used = (matrices + int(experts * share)) // devices
    embedded = load.num_tokens * model.hidden_size
    attention = attention_work(model, load, devices=devices, dtype=dtype)
    live = model.num_layers * attention.page_bytes
    logits = 4 * load.num_rows * model.vocab_size // devices
    return Work(
        num_bytes=(in_layers + head + vectors + embedded) * item + live + logits,
        flops=2 * load.num_tokens * used
        + 2 * load.num_rows * head
        + model.num_layers * attention.flops,
    )
