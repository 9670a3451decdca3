"""Weights as plain arrays by name: what GPUs, meshes and XLA's own products take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fastgen_jax.models.layer import VECTORS, LayerIndex, LayerWeights


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class DenseWeights:
    """Arrays of one dtype by the names of ``models.registry.expected_shapes``.

    Matrices are stored [in, out]; the embedding and the head [V, E].
    """

    arrays: dict[str, Array]

    @property
    def final_norm(self) -> Float[Array, "E"]:
        """Scale of the last norm."""
        return self.arrays["final_norm"]

    def embed(self, token_ids: Int[Array, "T"]) -> Float[Array, "T E"]:
        """Embeddings of the tokens."""
        return self.arrays["embed"][token_ids]

    def head_product(
        self, hidden: Float[Array, "R E"], num_rows: Int[Array, ""]
    ) -> Float[Array, "R V"]:
        """Logits, float32; all rows are computed."""
        head = self.arrays.get("head", self.arrays["embed"])
        return jnp.einsum("re,ve->rv", hidden, head, preferred_element_type=jnp.float32)

    def layers(
        self, num_tokens: Int[Array, ""], epsilon: float, *, unrolled: bool
    ) -> Callable[[LayerIndex], LayerWeights]:
        """A layer's weights by its index; padding is computed as tokens are."""
        if unrolled:
            return lambda index: _OneLayer(self.arrays, index, epsilon)
        vectors = {
            name: jnp.stack([self.arrays[f"layers.{i}.{name}"] for i in range(self.num_layers)])
            for name in VECTORS
        }
        return lambda index: _SwitchedLayer(self, index, vectors, epsilon)

    @property
    def num_layers(self) -> int:
        """Layers that there are weights of."""
        return sum(name.endswith(".attn_norm") for name in self.arrays)


class _Layer:
    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon

    def vector(self, name: str) -> Float[Array, "E"]:
        raise NotImplementedError

    def project(self, names: tuple[str, ...], x: Float[Array, "T I"]) -> tuple[Array, ...]:
        raise NotImplementedError

    def product(
        self,
        names: tuple[str, ...],
        x: Float[Array, "T I"],
        *,
        norm: str | None = None,
        residual: Float[Array, "T O"] | None = None,
        gated: bool = False,
    ) -> tuple[Float[Array, "T O"], ...]:
        if norm is not None:
            x = rms_norm(x, self.vector(norm), self._epsilon)
        products = self.project(names, x)
        if gated:
            first, second = products
            products = (jax.nn.silu(first) * second,)
        if residual is not None:
            (product,) = products
            products = (residual + product,)
        return products


class _OneLayer(_Layer):
    def __init__(self, arrays: Mapping[str, Array], index: LayerIndex, epsilon: float) -> None:
        super().__init__(epsilon)
        self._arrays = arrays
        self._index = index

    def vector(self, name: str) -> Float[Array, "E"]:
        return self._arrays[f"layers.{self._index}.{name}"]

    def project(self, names: tuple[str, ...], x: Float[Array, "T I"]) -> tuple[Array, ...]:
        return tuple(x @ self._arrays[f"layers.{self._index}.{name}"] for name in names)


class _SwitchedLayer(_Layer):
    """The layer of a traced index: a branch per layer holds nothing but its products."""

    def __init__(
        self,
        weights: DenseWeights,
        index: LayerIndex,
        vectors: Mapping[str, Array],
        epsilon: float,
    ) -> None:
        super().__init__(epsilon)
        self._weights = weights
        self._index = index
        self._vectors = vectors

    def vector(self, name: str) -> Float[Array, "E"]:
        return self._vectors[name][self._index]

    def project(self, names: tuple[str, ...], x: Float[Array, "T I"]) -> tuple[Array, ...]:
        def branch(layer: int) -> Callable[[Array], tuple[Array, ...]]:
            matrices = [self._weights.arrays[f"layers.{layer}.{name}"] for name in names]
            return lambda x: tuple(x @ matrix for matrix in matrices)

        branches = [branch(layer) for layer in range(self._weights.num_layers)]
        return lax.switch(self._index, branches, x)


def rms_norm(
    x: Float[Array, "T E"], weight: Float[Array, "E"], epsilon: float
) -> Float[Array, "T E"]:
    """x scaled to unit mean square in float32, times the weight (Zhang and Sennrich, 2019)."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype) * weight[None]
