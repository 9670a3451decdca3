"""A model by any of its names, written as a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.sources import resolve_model
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.models.weights.packing import DTYPES
from fastgen_jax.models.weights.snapshot_writer import SnapshotWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A snapshot that was written: where, of what type, and the bytes of its weights."""

    directory: Path
    dtype: str
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.directory}: {self.num_bytes / 1e6:.1f} MB of {self.dtype} weights"


def convert(
    model: str | Path,
    directory: str | Path,
    *,
    dtype: str | None = None,
    replace: bool = False,
    show_progress: bool = True,
) -> Conversion:
    """Write the model as a snapshot, which ``LLM(directory)`` loads, and return what was written.

    The snapshot has the weights in the engine's own layout as Orbax checkpoints, the model's
    configuration and its tokenizer; ``dtype`` is "float32", "bfloat16", or None for the smaller of
    them that loses nothing. It appears when it is complete. ``replace`` allows it to take the place
    of an older snapshot.

    Raises:
        ConfigError: the model isn't found, the dtype is unknown, or ``directory`` exists or can't
            be written.
        CheckpointError: the model's files are damaged or incomplete.
        UnsupportedModelError: it needs mathematics that isn't implemented.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(
            "weights can't be kept in this type",
            field="dtype",
            value=dtype,
            remedy=f"use {' or '.join(DTYPES)}, or leave it out",
        )
    directory = Path(directory).expanduser()
    with open_checkpoint(resolve_model(model, progress=show_progress)) as checkpoint:
        # None: tqdm hides the bar where there is no terminal.
        hide = not show_progress or None
        writer = SnapshotWriter(checkpoint=checkpoint, dtype=dtype)
        with tqdm(
            desc="Converting weights",
            total=writer.num_bytes,
            unit="B",
            unit_scale=True,
            disable=hide,
            leave=False,
        ) as bar:
            writer.write(directory, replace=replace, on_weight=bar.update)
        return Conversion(directory=directory, dtype=writer.dtype, num_bytes=writer.num_bytes)
