"""What a decode step can't be faster than: its bytes over the memory, its FLOPs over the products.

A decode step of R rows at context C reads every weight once, and the keys and values of R times C
tokens. Each row multiplies with every weight once, and its queries with all its keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.models.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFloor:
    """Seconds that the machine needs for one decode step at the least.

    Attributes:
        memory: to read weights, keys and values.
        matmul: to compute all products.
        in_turn: the larger of both for the products with weights, and then for attention, which
            can't begin before them: a step does one after the other, so its memory rests while
            products are computed.
    """

    memory: float
    matmul: float
    in_turn: float

    @property
    def seconds(self) -> float:
        """The larger one."""
        return max(self.memory, self.matmul)

    @property
    def bound(self) -> str:
        """Which of the two that is: "memory" or "matmul"."""
        return "memory" if self.memory >= self.matmul else "matmul"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCost:
    """A model's bytes and FLOPs.

    Attributes:
        weight_bytes: of all weights that a step reads.
        kv_bytes_per_token: keys and values of one token in all layers.
        flops_per_row: of the products with weights, for one token.
        flops_per_context_token: of attention, for one query and one key in all layers.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    flops_per_row: int
    flops_per_context_token: int

    @classmethod
    def of(cls, model: ModelConfig, *, weight_bytes: int, kv_itemsize: int) -> DecodeCost:
        """The cost of the model's decode steps; a multiply-add counts as 2 FLOPs."""
        heads = model.num_heads + model.num_kv_heads
        layer = model.hidden_size * (2 * model.head_dim * heads + 3 * model.intermediate_size)
        head = model.vocab_size * model.hidden_size
        width = model.num_layers * model.head_dim
        return cls(
            weight_bytes=weight_bytes,
            kv_bytes_per_token=2 * width * model.num_kv_heads * kv_itemsize,
            flops_per_row=2 * (model.num_layers * layer + head),
            flops_per_context_token=4 * width * model.num_heads,
        )

    def floor(self, *, rows: int, context: int, read_rate: float, flop_rate: float) -> DecodeFloor:
        """The floor of R = ``rows`` at C = ``context``; rates in bytes and FLOPs per second."""
        keys = rows * context
        weights = self.weight_bytes / read_rate, rows * self.flops_per_row / flop_rate
        attention = (
            keys * self.kv_bytes_per_token / read_rate,
            keys * self.flops_per_context_token / flop_rate,
        )
        return DecodeFloor(
            memory=weights[0] + attention[0],
            matmul=weights[1] + attention[1],
            in_turn=max(weights) + max(attention),
        )
