"""Arrays in an Orbax checkpoint, which is imported no sooner than one is read or written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.snapshot_manifest import damaged

# What is read at once by a device that needs a slice; more of them cost more files' lookups.
_CHUNK_BYTES = 4 << 20


def save_arrays(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as a new Orbax checkpoint, in chunks, uncompressed."""
    import orbax.checkpoint as ocp

    chunked = {name: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for name in arrays}
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

    A device reads no more than the chunks that it has a part of; on its way there, all that is
    restored may be on the host at once. Raises CheckpointError where the
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


def _restore(
    directory: Path, targets: Mapping[str, jax.ShapeDtypeStruct], requests: Mapping[str, Any]
) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with (
        _quiet(),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        request = ocp.args.PyTreeRestore(item=dict(targets), restore_args=dict(requests))
        # What a damaged file raises depends on the layer below that notices.
        try:
            # Asked for first, because a restore that fails halfway leaves threads behind.
            held = checkpointer.metadata(directory.absolute()).item_metadata.tree
            _check_shapes(directory, held, targets)
            return checkpointer.restore(directory.absolute(), args=request)
        except CheckpointError:
            raise
        except Exception as error:
            raise damaged(directory, f"the arrays can't be read: {_first_line(error)}") from error


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
