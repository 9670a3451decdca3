"""Loads one model's weights, nothing else, and prints seconds and bytes as a line of JSON.

``model_loading`` starts it in a process of its own: a peak of memory is a process's, and jax counts
its devices when it starts.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from benchmarks.host_memory import HostMemory
from fastgen_jax.config import usable_cores
from fastgen_jax.models.weights.checkpoint import Checkpoint, open_checkpoint
from fastgen_jax.models.weights.packing import dense_shapes
from fastgen_jax.models.weights.snapshot import Snapshot
from fastgen_jax.models.weights.snapshot_manifest import is_snapshot
from fastgen_jax.parallel.mesh import make_mesh
from fastgen_jax.runtime.sharded_weights import ShardedSource
from fastgen_jax.runtime.snapshot_weights import SnapshotSource
from fastgen_jax.runtime.weights import DenseSource, PackedSource, WeightSource, num_bytes
from pallas_kernels.linear import LinearNative
from pallas_kernels.native import set_num_threads

Form = Literal["packed", "dense"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One loading.

    Attributes:
        import_seconds: of the reader's package, Orbax, which is imported for snapshots alone.
        seconds: from opening the files until all weights are on their devices, without that.
        weight_bytes: of all weights, as they are kept.
        peak_bytes: most that was resident at a time, less what was before opening.
        largest_bytes: of the largest tensor in the loaded type.
    """

    import_seconds: float
    seconds: float
    weight_bytes: int
    peak_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOnce:
    """Loads as the engine does, prints one line."""

    model: Path
    """A directory or a .gguf file."""
    dtype: str = "bfloat16"
    """Of the loaded weights."""
    form: Form = "packed"
    """"packed" for native CPU kernels, "dense" for XLA."""
    tensor: int = 1
    """Devices that share the weights; the process must have so many."""

    def main(self) -> None:
        """Load and print."""
        for device in jax.devices():
            jax.block_until_ready(jax.device_put(np.zeros(16), device))
        if self.form == "packed":
            set_num_threads(usable_cores())
        begin = time.perf_counter()
        if is_snapshot(self.model):
            import orbax.checkpoint  # noqa: F401 - before memory is counted, as it isn't weights
        imported = time.perf_counter()
        memory = HostMemory.begin()
        with open_checkpoint(self.model) as checkpoint:
            source = self._source(checkpoint)
            weights = jax.block_until_ready(source.load(lambda num_bytes: None))
        end = time.perf_counter()
        shapes = dense_shapes(checkpoint.config, self.dtype).values()
        load = Load(
            import_seconds=imported - begin,
            seconds=end - imported,
            weight_bytes=num_bytes(weights),
            peak_bytes=memory.peak_growth(),
            largest_bytes=max(num_bytes(shape) for shape in shapes),
        )
        print(json.dumps(asdict(load)), flush=True)

    def _source(self, checkpoint: Checkpoint | Snapshot) -> WeightSource:
        model, dtype = checkpoint.config, self.dtype
        if self.form == "packed":
            packing = checkpoint.packing(dtype=dtype, quantization=None)
            return PackedSource(
                model=model,
                packing=packing,
                linear=LinearNative(),
                stacks=partial(checkpoint.stacks, packing),
            )
        mesh = make_mesh(jax.devices(), tensor=self.tensor) if self.tensor > 1 else None
        if isinstance(checkpoint, Snapshot):
            return SnapshotSource(model=model, dtype=dtype, snapshot=checkpoint, mesh=mesh)
        if mesh is not None:
            return ShardedSource(model=model, dtype=dtype, mesh=mesh, read=checkpoint.windows)
        return DenseSource(model=model, dtype=dtype, tensors=checkpoint.tensors)


if __name__ == "__main__":
    tyro.cli(LoadOnce, description=__doc__).main()
