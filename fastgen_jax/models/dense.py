"""Weights as plain arrays by name: what GPUs, meshes and XLA's own products take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.layer import LayerIndex, LayerWeights
from fastgen_jax.models.norms import normalize
from fastgen_jax.models.tensors import layer_tensors


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class DenseWeights:
    """Arrays by the names of ``models.tensors.tensor_shapes``.

    Matrices are stored [in, out]; the embedding and the head [V, E]. All have one dtype, but for
    the vectors that are kept in float32.
    """

    arrays: dict[str, Array]

    def whole(self, name: str) -> Array:
        """A tensor of no layer, that isn't multiplied with."""
        return self.arrays[name]

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
        self, config: ModelConfig, run: range, num_tokens: Int[Array, ""], *, unrolled: bool
    ) -> Callable[[LayerIndex], LayerWeights]:
        """The weights of a layer of ``run`` by its index; padding is computed as tokens are.

        All layers of the run have tensors of the same names.
        """
        if unrolled:
            return lambda index: _OneLayer(self.arrays, index, config)
        vectors = {
            name: jnp.stack([self.arrays[f"layers.{i}.{name}"] for i in run])
            for name in layer_tensors(config, run.start).vectors
        }
        return lambda index: _SwitchedLayer(self.arrays, run, index, vectors, config)


class _Layer:
    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def vector(self, name: str) -> Float[Array, "N"]:
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
            x = normalize(x, self._config.norm, self.vector(norm), None)
        products = self.project(names, x)
        if gated:
            first, second = products
            products = (jax.nn.silu(first) * second,)
        if residual is not None:
            (product,) = products
            products = (residual + product,)
        return products


class _OneLayer(_Layer):
    def __init__(self, arrays: Mapping[str, Array], index: LayerIndex, config: ModelConfig) -> None:
        super().__init__(config)
        self._arrays = arrays
        self._index = index

    def vector(self, name: str) -> Float[Array, "N"]:
        return self._arrays[f"layers.{self._index}.{name}"]

    def project(self, names: tuple[str, ...], x: Float[Array, "T I"]) -> tuple[Array, ...]:
        return tuple(x @ self._arrays[f"layers.{self._index}.{name}"] for name in names)

    def with_experts(
        self, function: Callable[..., Float[Array, "T E"]], *operands: Array
    ) -> Float[Array, "T E"]:
        return function(_experts(self._arrays, self._index), *operands)


class _SwitchedLayer(_Layer):
    """The layer of a traced index: a branch per layer holds nothing but its products."""

    def __init__(
        self,
        arrays: Mapping[str, Array],
        run: range,
        index: LayerIndex,
        vectors: Mapping[str, Array],
        config: ModelConfig,
    ) -> None:
        super().__init__(config)
        self._arrays = arrays
        self._run = run
        self._place = index - run.start if run.start else index
        self._vectors = vectors

    def vector(self, name: str) -> Float[Array, "N"]:
        return self._vectors[name][self._place]

    def project(self, names: tuple[str, ...], x: Float[Array, "T I"]) -> tuple[Array, ...]:
        def branch(layer: int) -> Callable[[Array], tuple[Array, ...]]:
            matrices = [self._arrays[f"layers.{layer}.{name}"] for name in names]
            return lambda x: tuple(x @ matrix for matrix in matrices)

        return lax.switch(self._place, [branch(layer) for layer in self._run], x)

    def with_experts(
        self, function: Callable[..., Float[Array, "T E"]], *operands: Array
    ) -> Float[Array, "T E"]:
        branches = [partial(function, _experts(self._arrays, layer)) for layer in self._run]
        return lax.switch(self._place, branches, *operands)


def _experts(arrays: Mapping[str, Array], layer: LayerIndex) -> dict[str, Array]:
    prefix = f"layers.{layer}."
    names = (name for name in arrays if name.startswith(prefix))
    found = {name.removeprefix(prefix): arrays[name] for name in names}
    return {name: array for name, array in found.items() if name.startswith("expert_")}
