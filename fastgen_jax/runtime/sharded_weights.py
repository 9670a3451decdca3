"""Weights on their way to the devices of a mesh: each device reads no more than its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Device
from jax.sharding import Mesh, Sharding

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.dense import DenseWeights
from fastgen_jax.models.weights.window import Window, WindowsOf
from fastgen_jax.parallel.sharding import weight_sharding
from fastgen_jax.runtime.weights import abstract_dense

# (dtype, windows of each tensor) -> (our name, window, array), as Checkpoint.windows.
ReadWindows = Callable[[np.dtype, WindowsOf], Iterator[tuple[str, Window, np.ndarray]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedSource:
    """Weights that become plain arrays of one dtype, split over a mesh.

    While loading, the host holds two windows at a time beside what lies on its own devices: the one
    being copied and the one being read. A window is what one device has of a tensor.

    Attributes:
        model: shape of the decoder.
        dtype: "float32" or "bfloat16".
        mesh: the devices.
        read: reads windows.
    """

    model: ModelConfig
    dtype: str
    mesh: Mesh
    read: ReadWindows

    def abstract(self) -> DenseWeights:
        """Shapes in place of arrays, with their shardings."""
        return with_shardings(abstract_dense(self.model, self.dtype), self.mesh)

    def load(self, on_weight: Callable[[int], None]) -> DenseWeights:
        """The arrays, split; ``on_weight`` hears the bytes of each window once."""
        arrays: dict[str, jax.Array] = {}
        shapes = self.abstract().arrays
        shards: list[jax.Array] = []
        for name, window, values in self.read(np.dtype(jnp.dtype(self.dtype)), self._windows):
            target = shapes[name]
            devices = devices_by_window(target.sharding, target.shape)
            placed = [jax.device_put(values, device) for device in devices[window]]
            # Waited for, so that no more than two windows are on the host at a time.
            shards += jax.block_until_ready(placed)
            on_weight(values.nbytes)
            if window == list(devices)[-1]:
                arrays[name] = jax.make_array_from_single_device_arrays(
                    target.shape, target.sharding, shards
                )
                shards = []
        return DenseWeights(arrays)

    def _windows(self, name: str, shape: tuple[int, ...]) -> Sequence[Window]:
        return tuple(devices_by_window(weight_sharding(self.mesh, name), shape))


def with_shardings(weights: DenseWeights, mesh: Mesh) -> DenseWeights:
    """Shapes of weights, each with its sharding over the mesh."""
    shapes: Any = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=weight_sharding(mesh, name))
        for name, shape in weights.arrays.items()
    }
    return DenseWeights(shapes)


def devices_by_window(
    sharding: Sharding,
    shape: tuple[int, ...],
) -> dict[Window, list[Device]]:  # pyright: ignore[reportInvalidTypeForm]
    """This process's devices by the window of the array that they hold, in the windows' order."""
    found: dict[Window, list[Device]] = {}  # pyright: ignore[reportInvalidTypeForm]
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None, "every device of a mesh holds a window"
        window = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        found.setdefault(window, []).append(device)
    return dict(sorted(found.items()))
