"""Weights on their way to the device: their shapes before they are read, and the reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Weights
from fastgen_jax.models.dense import DenseWeights
from fastgen_jax.models.packed import PackedWeights
from fastgen_jax.models.tensors import (
    EMBEDDINGS,
    MATRICES,
    is_of_layer,
    is_wide,
    split_name,
    tensor_shapes,
)
from fastgen_jax.models.weights.packing import DTYPES, Packing, Stack, dense_shapes, stack_shapes
from pallas_kernels.linear import LinearConfig, PackedMatrix, allocate, pack_values

Tensors = Callable[[np.dtype], Iterator[tuple[str, np.ndarray]]]
Stacks = Callable[[], Iterator[tuple[str, Stack]]]


class WeightSource(Protocol):
    """Weights that a step can be compiled for before they are read."""

    def abstract(self) -> Weights:
        """Shapes and dtypes in place of arrays."""
        ...

    def load(self, on_weight: Callable[[int], None]) -> Weights:
        """The weights on the default device; ``on_weight`` hears the bytes of each."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSource:
    """Weights that become plain arrays of one dtype."""

    model: ModelConfig
    dtype: str
    tensors: Tensors

    def abstract(self) -> DenseWeights:
        """Shapes in place of arrays."""
        return abstract_dense(self.model, self.dtype)

    def load(self, on_weight: Callable[[int], None]) -> DenseWeights:
        """The arrays."""
        arrays: dict[str, jax.Array] = {}
        for name, values in self.tensors(np.dtype(jnp.dtype(self.dtype))):
            # Waited for, so that no more than two tensors are on the host at a time.
            arrays[name] = jax.block_until_ready(jax.device_put(values))
            on_weight(values.nbytes)
        return DenseWeights(arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSource:
    """Weights that become stacks of packed layers.

    Attributes:
        model: shape of the decoder.
        packing: how each matrix is kept.
        linear: how the products will be computed.
        stacks: reads everything, by name.
    """

    model: ModelConfig
    packing: Packing
    linear: LinearConfig
    stacks: Stacks

    def abstract(self) -> PackedWeights:
        """Shapes in place of arrays."""
        return self._assemble(stack_shapes(self.model, self.packing.dtype, self.packing.formats))

    def load(self, on_weight: Callable[[int], None]) -> PackedWeights:
        """The stacks."""
        stacks: dict[str, Any] = {}
        for name, stack in self.stacks():
            stacks[name] = jax.device_put(stack)
            on_weight(sum(leaf.nbytes for leaf in jax.tree.leaves(stack)))
        return self._assemble(stacks)

    def _assemble(self, stacks: Mapping[str, Any]) -> PackedWeights:
        of_layers = {split_name(name)[0] for name in tensor_shapes(self.model) if is_of_layer(name)}
        return PackedWeights(
            matrices={name: stacks[name] for name in of_layers if name in MATRICES},
            vectors={name: stacks[name] for name in of_layers if name not in MATRICES},
            whole_arrays={
                name: stack
                for name, stack in stacks.items()
                if name not in of_layers and name not in EMBEDDINGS
            },
            embedding=stacks["embed"],
            head=stacks.get("head"),
            linear=self.linear,
            dtype=self.packing.dtype,
        )


def num_bytes(tree: object) -> int:
    """Bytes of all arrays, or shapes of arrays, in a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_per_device(tree: object) -> int:
    """Bytes that one device has of all arrays, or shapes of arrays, in a pytree."""
    return sum(
        math.prod(_local_shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _local_shape(leaf: jax.Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)


def abstract_dense(model: ModelConfig, dtype: str | jnp.dtype) -> DenseWeights:
    """Dense weights with shapes in place of arrays."""
    shapes: Any = dense_shapes(model, jnp.dtype(dtype).name)
    return DenseWeights(shapes)


def _kind(model: ModelConfig, name: str, dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if is_wide(model, split_name(name)[0]) else dtype


def random_tensors(model: ModelConfig, seed: int) -> Tensors:
    """Weights drawn at random, for benchmarks of shapes: unit norms, small matrices."""

    def tensors(dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        for name, shape in tensor_shapes(model).items():
            if len(shape) == 1 or name.endswith("_bias"):
                fill = 0 if name.endswith("_bias") else 1
                yield name, np.full(shape, fill, _kind(model, name, dtype))
            else:
                values = rng.standard_normal(shape, np.float32) * 0.02
                yield name, values.astype(dtype)

    return tensors


def random_stacks(model: ModelConfig, packing: Packing, seed: int) -> Stacks:
    """The weights of ``random_tensors``, packed."""

    def stacks() -> Iterator[tuple[str, Stack]]:
        kind = DTYPES[packing.dtype]
        filled: dict[str, Any] = {
            name: allocate(stack)
            if isinstance(stack, PackedMatrix)
            else np.empty(stack.shape, stack.dtype)
            for name, stack in stack_shapes(model, packing.dtype, packing.formats).items()
        }
        for name, values in random_tensors(model, seed)(kind):
            part, layer = split_name(name)
            stack = filled[part]
            if isinstance(stack, PackedMatrix):
                lines = values.T if part in MATRICES else values
                pack_values(np.ascontiguousarray(lines), stack, layer=layer)
            elif is_of_layer(name):
                stack[layer] = values
            else:
                stack[...] = values
        yield from filled.items()

    return stacks
