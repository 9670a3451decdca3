"""Arrays in an Orbax checkpoint, which is imported no sooner than one is read or written."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.free_memory import freed_memory_released
from fastgen_jax.models.weights.snapshot_manifest import damaged

# A chunk is read by every device that has a part of it, so an array has several; small ones cost
# more look-ups than bytes.
_CHUNKS = 16
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 1 << 16, 1 << 22


def save_arrays(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as a new Orbax checkpoint, in chunks, uncompressed."""
    import orbax.checkpoint as ocp

    chunked = {
        name: ocp.SaveArgs(chunk_byte_size=_chunk_bytes(values)) for name, values in arrays.items()
    }
    with (
        _quiet(),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer,
    ):
        request = ocp.args.PyTreeSave(dict(arrays), save_args=chunked)
        checkpointer.save(directory.absolute(), args=request)


def restore_arrays(
    directory: Path, targets: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Return the arrays by name, each of its target's shape, dtype and sharding.

    A device reads no more than the chunks that it has a part of; no more is on its way
    there than the largest part of a device. Raises CheckpointError where the
    checkpoint can't be read, or holds other names or shapes.
    """
    import orbax.checkpoint as ocp

    requests = {
        name: ocp.ArrayRestoreArgs(
            sharding=target.sharding, global_shape=target.shape, dtype=target.dtype
        )
        for name, target in targets.items()
    }
    return _restore(directory, targets, requests)


def read_arrays(
    directory: Path, targets: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
    """Return the arrays by name on the host; see ``restore_arrays``."""
    import orbax.checkpoint as ocp

    requests = {
        name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=target.dtype)
        for name, target in targets.items()
    }
    return _restore(directory, targets, requests)


def _chunk_bytes(values: np.ndarray) -> int:
    return min(max(values.nbytes // _CHUNKS, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)


def _restore(
    directory: Path, targets: Mapping[str, jax.ShapeDtypeStruct], requests: Mapping[str, Any]
) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with _quiet(), freed_memory_released():
        # What a damaged file raises depends on the layer below that notices.
        try:
            # Asked for first, because a restore that fails halfway leaves threads behind.
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                held = checkpointer.metadata(directory.absolute()).item_metadata.tree
            _check_shapes(directory, held, targets)
            limited = ocp.BasePyTreeCheckpointHandler(
                restore_concurrent_bytes=1
                + max(_bytes_to_read(held[name], target) for name, target in targets.items())
            )
            with ocp.Checkpointer(
                ocp.PyTreeCheckpointHandler(handler_impl=limited)
            ) as checkpointer:
                request = ocp.args.PyTreeRestore(item=dict(targets), restore_args=dict(requests))
                return checkpointer.restore(directory.absolute(), args=request)
        except CheckpointError:
            raise
        except Exception as error:
            raise damaged(directory, f"the arrays can't be read: {_first_line(error)}") from error


def _bytes_to_read(held: Any, target: jax.ShapeDtypeStruct) -> int:
    """Most bytes of whole chunks that hold one device's part of an array, wherever it begins."""
    shape = target.shape
    if target.sharding is not None:
        shape = target.sharding.shard_shape(shape)
    chunk = held.storage.chunk_shape
    sizes = [
        min(-(-part // step) + 1, -(-whole // step)) * step
        for part, whole, step in zip(shape, target.shape, chunk, strict=True)
    ]
    return math.prod(sizes) * np.dtype(held.dtype).itemsize


def _check_shapes(
    directory: Path, held: Mapping[str, Any], targets: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
    for name, target in targets.items():
        if name not in held:
            raise damaged(directory, f"array {name!r} is missing")
        if tuple(held[name].shape) != target.shape:
            raise damaged(
                directory,
                f"array {name!r} has shape {tuple(held[name].shape)}, not {target.shape}",
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's notes about its own work to itself; its errors are raised."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
