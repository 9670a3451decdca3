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

from benchmarks.host_memory import HostMemory
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.parallel.mesh import make_mesh
from fastgen_jax.parallel.sharding import weight_sharding
from fastgen_jax.runtime.sharded_weights import ShardedSource
from fastgen_jax.runtime.weights import num_bytes


def main() -> None:
    """Load, measure, compare."""
    mesh = make_mesh(jax.devices(), tensor=4)
    for device in jax.devices():
        jax.device_put(np.zeros(8), device).block_until_ready()
    with open_checkpoint(Path(sys.argv[1])) as checkpoint:
        source = ShardedSource(
            model=checkpoint.config, dtype="float32", mesh=mesh, read=checkpoint.windows
        )
        heard: list[int] = []
        memory = HostMemory.begin()
        arrays = source.load(heard.append).arrays
        peak = memory.peak_growth()
        assert memory.growth() > 0
        expected = dict(checkpoint.tensors(np.dtype(np.float32)))
    print(
        json.dumps(
            {
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
                "shapes_are_as_announced": all(
                    (arrays[name].shape, arrays[name].dtype, arrays[name].sharding)
                    == (shape.shape, shape.dtype, shape.sharding)
                    for name, shape in source.abstract().arrays.items()
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
