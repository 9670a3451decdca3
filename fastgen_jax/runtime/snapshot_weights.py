"""Weights of a snapshot on their way to the devices: Orbax reads each device's part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.dense import DenseWeights
from fastgen_jax.models.weights.snapshot import Snapshot
from fastgen_jax.parallel.division import KV_HEAD_WEIGHTS
from fastgen_jax.parallel.sharding import replicated, weight_sharding
from fastgen_jax.runtime.sharded_weights import with_shardings
from fastgen_jax.runtime.weights import abstract_dense


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSource:
    """A snapshot's weights as plain arrays of one dtype.

    Attributes:
        model: shape of the decoder, with its kv heads repeated for the mesh.
        dtype: "float32" or "bfloat16".
        snapshot: what to read.
        mesh: the devices; None for the default one.
        kv_head_repeats: devices that have the same kv head.
    """

    model: ModelConfig
    dtype: str
    snapshot: Snapshot
    mesh: Mesh | None = None
    kv_head_repeats: int = 1

    def abstract(self) -> DenseWeights:
        """Shapes in place of arrays."""
        shapes = abstract_dense(self.model, self.dtype)
        return shapes if self.mesh is None else with_shardings(shapes, self.mesh)

    def load(self, on_weight: Callable[[int], None]) -> DenseWeights:
        """The arrays."""
        arrays: dict[str, jax.Array] = {}
        for name, array in self.snapshot.restore(np.dtype(jnp.dtype(self.dtype)), self._sharding):
            arrays[name] = self._repeated(name, array) if self._is_repeated(name) else array
            on_weight(array.nbytes)
        return DenseWeights(arrays)

    def _is_repeated(self, name: str) -> bool:
        return self.kv_head_repeats > 1 and name.rsplit(".", 1)[-1] in KV_HEAD_WEIGHTS

    def _repeated(self, name: str, array: jax.Array) -> jax.Array:
        """The array with every kv head as often as devices have it, each device with its own."""
        assert self.mesh is not None, "heads are repeated for a mesh"

        def repeat(array: jax.Array) -> jax.Array:
            heads = array.reshape(*array.shape[:-1], -1, self.model.head_dim)
            return jnp.repeat(heads, self.kv_head_repeats, -2).reshape(*array.shape[:-1], -1)

        return jax.device_put(repeat(array), weight_sharding(self.mesh, name))

    def _sharding(self, name: str) -> Sharding:
        if self.mesh is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        if self._is_repeated(name):
            return replicated(self.mesh)
        return weight_sharding(self.mesh, name)
