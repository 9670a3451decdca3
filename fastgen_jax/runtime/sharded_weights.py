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
from fastgen_jax.parallel.division import KV_HEAD_WEIGHTS
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
        model: shape of the decoder, with its kv heads repeated for the mesh.
        dtype: "float32" or "bfloat16".
        mesh: the devices.
        read: reads windows of the tensors as they are stored.
        kv_head_repeats: devices that have the same kv head.
    """

    model: ModelConfig
    dtype: str
    mesh: Mesh
    read: ReadWindows
    kv_head_repeats: int = 1

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
            devices = self._devices(name, target.shape)
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
        is_repeated = self._repeats(name) > 1
        shape = (*shape[:-1], shape[-1] * self._repeats(name)) if is_repeated else shape
        return tuple(self._devices(name, shape))

    def _devices(self, name: str, shape: tuple[int, ...]) -> dict[Window, list[Device]]:  # pyright: ignore[reportInvalidTypeForm]
        """The devices by the window of the stored tensor that they hold; ``shape`` is ours."""
        found = devices_by_window(weight_sharding(self.mesh, name), shape)
        repeats, size = self._repeats(name), self.model.head_dim
        if repeats == 1:
            return found
        stored: dict[Window, list[Device]] = {}  # pyright: ignore[reportInvalidTypeForm]
        for window, devices in found.items():
            # With repeats a device has one head.
            head = window[-1][0] // size // repeats
            kept = (*window[:-1], (head * size, (head + 1) * size))
            stored.setdefault(kept, []).extend(devices)
        return stored

    def _repeats(self, name: str) -> int:
        is_for_kv_heads = name.rsplit(".", 1)[-1] in KV_HEAD_WEIGHTS
        return self.kv_head_repeats if is_for_kv_heads else 1


def windows_of_tensors(
    tensors: Callable[[np.dtype], Iterator[tuple[str, np.ndarray]]],
) -> ReadWindows:
    """Windows cut out of whole tensors, where those are made and not read."""

    def read(dtype: np.dtype, windows: WindowsOf) -> Iterator[tuple[str, Window, np.ndarray]]:
        for name, values in tensors(dtype):
            for window in windows(name, values.shape):
                yield name, window, np.ascontiguousarray(values[tuple(slice(*w) for w in window)])

    return read


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
