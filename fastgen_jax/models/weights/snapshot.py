"""A model converted before: its configuration, its weights by Orbax, its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import jax
import numpy as np
from jax.sharding import Sharding

from fastgen_jax.models.tensors import split_name, tensor_shapes
from fastgen_jax.models.weights.array_stacks import stacks_of_arrays
from fastgen_jax.models.weights.orbax_arrays import read_arrays, restore_arrays
from fastgen_jax.models.weights.packing import (
    DTYPES,
    Packing,
    Stack,
    choose_packing,
    dense_shapes,
    dtype_name,
    stack_shapes,
)
from fastgen_jax.models.weights.snapshot_manifest import (
    GGUF_TOKENIZER_FILE,
    TOKENIZER_DIRECTORY,
    damaged,
    read_manifest,
)

_ENCODING_OF = {"float32": "F32", "bfloat16": "BF16"}


class Snapshot:
    """An open snapshot; ``config``, ``source``, ``num_bytes`` and the tokenizer as in Checkpoint.

    Raises CheckpointError where a file of it is missing, cut or damaged. Nothing stays open.
    """

    format = "orbax"

    def __init__(self, path: Path) -> None:
        manifest = read_manifest(path)
        self.config = manifest.model
        self.source = str(path)
        self._path = path
        self._dtype = manifest.dtype
        self._parts = manifest.parts
        self._check_names()
        shapes = dense_shapes(self.config, self._dtype)
        self.num_bytes = sum(shape.size * shape.dtype.itemsize for shape in shapes.values())
        metadata = path / TOKENIZER_DIRECTORY / GGUF_TOKENIZER_FILE
        has_gguf_tokenizer = metadata.is_file()
        self.directory = None if has_gguf_tokenizer else path / TOKENIZER_DIRECTORY
        self.tokenizer_fields: Mapping[str, object] | None = (
            MappingProxyType(_read_fields(metadata)) if has_gguf_tokenizer else None
        )

    def tensors(self, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (our name, array) for every weight on the host; those of one part at a time.

        ``dtype`` as in ``Checkpoint.tensors``. Raises CheckpointError for arrays that can't be
        read.
        """
        shapes = dense_shapes(self.config, dtype_name(dtype))
        for part, names in self._parts.items():
            arrays = read_arrays(self._path / part, {name: shapes[name] for name in names})
            for name in names:
                yield name, arrays.pop(name)

    def tensors_by_stack(self, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what ``tensors`` does, which has all layers of one name together."""
        return self.tensors(dtype)

    @property
    def lossless_dtype(self) -> str:
        """The type that the weights are stored in."""
        return self._dtype

    def restore(
        self, dtype: np.dtype, sharding_of: Callable[[str], Sharding]
    ) -> Iterator[tuple[str, jax.Array]]:
        """Yield (our name, array) for every weight, read straight to its devices.

        Raises CheckpointError for arrays that can't be read.
        """
        shapes = dense_shapes(self.config, dtype_name(dtype))
        for part, names in self._parts.items():
            targets = {name: shapes[name].update(sharding=sharding_of(name)) for name in names}
            yield from restore_arrays(self._path / part, targets).items()

    def packing(self, *, dtype: str, quantization: str | None) -> Packing:
        """Return the format of every matrix; see ``Checkpoint.packing``."""
        names = tensor_shapes(self.config)
        stored = {split_name(name)[0]: {_ENCODING_OF[self._dtype]} for name in names}
        return choose_packing(self.config, dtype=dtype, quantization=quantization, encodings=stored)

    def stacks(self, packing: Packing) -> Iterator[tuple[str, Stack]]:
        """Yield (name, stack of all layers); see ``Checkpoint.stacks``."""
        # Read as stored: a quantized matrix is to be rounded once.
        shapes = stack_shapes(self.config, packing.dtype, packing.formats)
        return stacks_of_arrays(self.tensors(DTYPES[self._dtype]), shapes, self.config)

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_names(self) -> None:
        held = [name for names in self._parts.values() for name in names]
        if sorted(held) != sorted(tensor_shapes(self.config)) or self._dtype not in DTYPES:
            raise damaged(
                self._path, "the snapshot's description lists other arrays than its model has"
            )


def _read_fields(path: Path) -> dict[str, object]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"the tokenizer's description can't be read: {error}") from error
