"""Weights packed for the native kernels of a CPU, or kept quantized: an array a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.layer import LayerIndex, LayerWeights
from pallas_kernels.linear import LinearConfig, PackedMatrix, RmsNorm, linear, take_columns


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """All layers of a matrix in one array, from which a kernel picks a layer without copying it.

    Attributes:
        matrices: a stack of L layers by the names of ``models.tensors.MATRICES``.
        vectors: [L, N] for each scale, bias or sinks of a layer.
        whole_arrays: those of no layer: the last norm, learned positions, the head's bias.
        embedding: a stack of one, whose output features are the V tokens.
        head: the same; None where the embedding is the head too.
        linear: how the products are computed.
        dtype: of activations.
    """

    matrices: dict[str, PackedMatrix]
    vectors: dict[str, Float[Array, "L N"]]
    whole_arrays: dict[str, Array]
    embedding: PackedMatrix
    head: PackedMatrix | None
    linear: LinearConfig = field(metadata={"static": True})
    dtype: str = field(metadata={"static": True})

    def whole(self, name: str) -> Array:
        """A tensor of no layer, that isn't multiplied with."""
        return self.whole_arrays[name]

    def embed(self, token_ids: Int[Array, "T"]) -> Float[Array, "T E"]:
        """Embeddings of the tokens."""
        return take_columns(self.embedding, 0, token_ids, dtype=self.dtype)

    def head_product(
        self, hidden: Float[Array, "R E"], num_rows: Int[Array, ""]
    ) -> Float[Array, "R V"]:
        """Logits, float32, of the first ``num_rows`` rows."""
        head = self.embedding if self.head is None else self.head
        (logits,) = linear(
            hidden,
            (head,),
            layer=jnp.int32(0),
            num_tokens=num_rows,
            out_dtype="float32",
            config=self.linear,
        )
        return logits

    def layers(
        self, config: ModelConfig, run: range, num_tokens: Int[Array, ""], *, unrolled: bool
    ) -> Callable[[LayerIndex], LayerWeights]:
        """A layer's weights by its index; rows from ``num_tokens`` on aren't computed."""
        epsilon = config.norm.epsilon
        return lambda index: _PackedLayer(self, jnp.int32(index), num_tokens, epsilon)


class _PackedLayer:
    def __init__(
        self, weights: PackedWeights, index: Array, num_tokens: Array, epsilon: float
    ) -> None:
        self._weights = weights
        self._index = index
        self._num_tokens = num_tokens
        self._epsilon = epsilon

    def vector(self, name: str) -> Float[Array, "N"]:
        return self._weights.vectors[name][self._index]

    def product(
        self,
        names: tuple[str, ...],
        x: Float[Array, "T I"],
        *,
        norm: str | None = None,
        residual: Float[Array, "T O"] | None = None,
        gated: bool = False,
    ) -> tuple[Float[Array, "T O"], ...]:
        return linear(
            x,
            tuple(self._weights.matrices[name] for name in names),
            layer=self._index,
            num_tokens=self._num_tokens,
            norm=None if norm is None else self._norm(norm),
            residual=residual,
            gated=gated,
            config=self._weights.linear,
        )

    def with_experts(
        self, function: Callable[..., Float[Array, "T E"]], *operands: Array
    ) -> Float[Array, "T E"]:
        raise NotImplementedError("experts aren't packed: their models keep dense weights")

    def _norm(self, name: str) -> RmsNorm:
        return RmsNorm(weight=self._weights.vectors[name], epsilon=self._epsilon)
