"""Loads a checkpoint onto a mesh of 4 virtual CPU devices; prints what came out as JSON.

A program of its own, because jax counts the devices when it starts and the peak of memory is the
process's: ``XLA_FLAGS=--xla_force_host_platform_device_count=4 python loading_on_four_devices.py
CHECKPOINT``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401 - what it takes itself isn't what loading takes
from jax.sharding import Mesh

from benchmarks.host_memory import HostMemory
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.models.weights.snapshot import Snapshot
from fastgen_jax.parallel.mesh import make_mesh
from fastgen_jax.parallel.sharding import weight_sharding
from fastgen_jax.runtime.sharded_weights import ShardedSource
from fastgen_jax.runtime.snapshot_weights import SnapshotSource
from fastgen_jax.runtime.weights import num_bytes


def load(path: Path, mesh: Mesh) -> dict[str, object]:
    """Load, measure, compare with what one host reads."""
    with open_checkpoint(path) as checkpoint:
        model = checkpoint.config
        if isinstance(checkpoint, Snapshot):
            source = SnapshotSource(model=model, dtype="float32", snapshot=checkpoint, mesh=mesh)
        else:
            source = ShardedSource(model=model, dtype="float32", mesh=mesh, read=checkpoint.windows)
        heard: list[int] = []
        memory = HostMemory.begin()
        arrays = source.load(heard.append).arrays
        peak = memory.peak_growth()
        expected = dict(checkpoint.tensors(np.dtype(np.float32)))
    return {
        "peak": peak,
        "weights": num_bytes(arrays),
        "heard": sum(heard),
        "largest": max(values.nbytes for values in expected.values()),
        "equal": {
            name: bool((np.asarray(arrays[name]) == values).all())
            for name, values in expected.items()
        },
        "as_the_table_says": all(
            array.sharding == weight_sharding(mesh, name) for name, array in arrays.items()
        ),
        "as_announced": all(
            (arrays[name].shape, arrays[name].dtype, arrays[name].sharding)
            == (shape.shape, shape.dtype, shape.sharding)
            for name, shape in source.abstract().arrays.items()
        ),
    }


def main() -> None:
    """Load what the first argument names."""
    mesh = make_mesh(jax.devices(), tensor=4)
    for device in jax.devices():
        jax.device_put(np.zeros(8), device).block_until_ready()
    print(json.dumps(load(Path(sys.argv[1]), mesh)))


if __name__ == "__main__":
    main()
