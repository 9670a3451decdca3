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
from fastgen_jax.parallel.sharding import weight_sharding
from fastgen_jax.runtime.sharded_weights import with_shardings
from fastgen_jax.runtime.weights import abstract_dense


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSource:
    """A snapshot's weights as plain arrays of one dtype.

    Attributes:
        model: shape of the decoder.
        dtype: "float32" or "bfloat16".
        snapshot: what to read.
        mesh: the devices; None for the default one.
    """

    model: ModelConfig
    dtype: str
    snapshot: Snapshot
    mesh: Mesh | None = None

    def abstract(self) -> DenseWeights:
        """Shapes in place of arrays."""
        shapes = abstract_dense(self.model, self.dtype)
        return shapes if self.mesh is None else with_shardings(shapes, self.mesh)

    def load(self, on_weight: Callable[[int], None]) -> DenseWeights:
        """The arrays."""
        arrays: dict[str, jax.Array] = {}
        for name, array in self.snapshot.restore(np.dtype(jnp.dtype(self.dtype)), self._sharding):
            arrays[name] = array
            on_weight(array.nbytes)
        return DenseWeights(arrays)

    def _sharding(self, name: str) -> Sharding:
        if self.mesh is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        return weight_sharding(self.mesh, name)
