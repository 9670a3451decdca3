"""A model's configuration and weights, from a GGUF file or a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.registry import family_of_gguf, family_of_hf
from fastgen_jax.models.tensors import is_wide, split_name, tensor_shapes
from fastgen_jax.models.weights.family import WeightMap
from fastgen_jax.models.weights.gguf import GgufFile
from fastgen_jax.models.weights.huggingface_directory import HuggingFaceDirectory
from fastgen_jax.models.weights.loading import TensorLoad, load_windows
from fastgen_jax.models.weights.packing import (
    Packing,
    Stack,
    choose_packing,
    dtype_name,
    stack_shapes,
)
from fastgen_jax.models.weights.snapshot import Snapshot
from fastgen_jax.models.weights.snapshot_manifest import is_snapshot
from fastgen_jax.models.weights.stacks import load_stacks
from fastgen_jax.models.weights.stored import DOWNLOAD_AGAIN, MASKS, StoredTensor
from fastgen_jax.models.weights.torch_file import ImportTorch, import_torch
from fastgen_jax.models.weights.window import Window, WindowsOf, whole_tensors


class Checkpoint:
    """An open checkpoint whose tensors are all present and of the right shape.

    Made by ``open_checkpoint``. ``config`` is the model's shape; ``source`` the path it was opened
    from; ``num_bytes`` the bytes its weights take as stored. A GGUF file has ``tokenizer_fields``,
    its whole metadata as plain Python values; a Hugging Face directory has ``directory``, where the
    tokenizer's files lie; the other one is None. ``format`` is "gguf", "safetensors" or
    "pytorch". Close it after use, or use it in ``with``.
    """

    def __init__(
        self,
        opened: GgufFile | HuggingFaceDirectory,
        *,
        path: Path,
        config: ModelConfig,
        weights: WeightMap,
    ) -> None:
        self.config = config
        self.source = str(path)
        is_gguf = isinstance(opened, GgufFile)
        self.tokenizer_fields: Mapping[str, object] | None = (
            MappingProxyType(opened.metadata) if is_gguf else None
        )
        self.directory = None if is_gguf else path
        self.format = "gguf" if isinstance(opened, GgufFile) else opened.format
        self._opened = opened
        self._loads = _match(opened.tensors, config, weights, self.source)
        stored = {load.stored.name: load.stored for load in self._loads}
        self.num_bytes = sum(tensor.num_bytes for tensor in stored.values())

    def tensors(self, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (our name, array) for every weight, C-contiguous, in our layout and ``dtype``,
        or float32 where the model asks for it.

        ``dtype`` is float32 or bfloat16 (ConfigError otherwise). Tensors come one at a time; while
        the caller uses one, the next is prepared. Raises CheckpointError for bytes that can't be
        read, values that aren't finite, or a closed checkpoint.
        """
        return ((name, values) for name, _, values in self.windows(dtype, whole_tensors))

    def tensors_by_stack(self, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what ``tensors`` does, all layers of one name together."""
        self._check_loadable(dtype)
        places = {name: place for place, name in enumerate(self._stack_names())}
        loads = sorted(self._loads, key=lambda load: places[split_name(load.placement.name)[0]])
        found = load_windows(loads, np.dtype(dtype), whole_tensors)
        return ((name, values) for name, _, values in found)

    @property
    def lossless_dtype(self) -> str:
        """The smaller of the types that holds every weight as exactly as it is stored."""
        is_exact = (
            load.is_wide or (load.stored.encoding.name == "BF16" and not load.placement.add)
            for load in self._loads
        )
        return "bfloat16" if all(is_exact) else "float32"

    def windows(
        self, dtype: np.dtype, windows_of: WindowsOf
    ) -> Iterator[tuple[str, Window, np.ndarray]]:
        """Yield (our name, window, array) for every window of every weight, as ``tensors`` does.

        Of a line in the file that a window needs a part of, the rest is read and dropped; lines
        that it doesn't need aren't read. Raises ConfigError, too, for a window that can't be read
        by itself.
        """
        self._check_loadable(dtype)
        return load_windows(self._loads, np.dtype(dtype), windows_of)

    def packing(self, *, dtype: str, quantization: str | None) -> Packing:
        """Return the format of every matrix; see ``choose_packing``.

        Raises ConfigError for an unknown dtype or quantization, and for "gguf" where nothing is
        stored in a packed form.
        """
        encodings: dict[str, set[str]] = {name: set() for name in self._stack_names()}
        for load in self._loads:
            encodings[split_name(load.placement.name)[0]].add(load.stored.encoding.name)
        return choose_packing(
            self.config, dtype=dtype, quantization=quantization, encodings=encodings
        )

    def stacks(self, packing: Packing) -> Iterator[tuple[str, Stack]]:
        """Yield (name, stack of all layers) for every name of ``stack_shapes``, in its order.

        Matrices come as PackedMatrix of numpy arrays, a layer's vectors as [L, N]. Stacks come
        one at a time; while the caller uses one, the next is prepared. Raises CheckpointError for
        bytes that can't be read, values that aren't finite, or a closed checkpoint, and ConfigError
        for values that a format can't hold.
        """
        self._check_open()
        return load_stacks(self._loads, stack_shapes(self.config, packing.dtype, packing.formats))

    def _stack_names(self) -> dict[str, None]:
        """Our names without their layers, in the order of loading."""
        return dict.fromkeys(split_name(load.placement.name)[0] for load in self._loads)

    def _check_loadable(self, dtype: np.dtype) -> None:
        dtype_name(dtype)
        self._check_open()

    def _check_open(self) -> None:
        if any(file.closed for file in self._opened.files):
            raise CheckpointError(
                "the checkpoint is closed",
                field="source",
                value=self.source,
                remedy="open it again",
            )

    def close(self) -> None:
        """Close the files; closing twice is harmless."""
        self._opened.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(
    path: Path, *, import_torch: ImportTorch = import_torch
) -> Checkpoint | Snapshot:
    """Return what is at ``path``: a GGUF file, a Hugging Face directory or a snapshot, validated.

    ``import_torch`` is called for a directory whose weights only PyTorch can read.
    Raises CheckpointError when a file is missing, cut or corrupt, or a tensor is missing, has
    another shape, or has no place in the model; UnsupportedModelError when the model asks for
    mathematics that isn't implemented.
    """
    path = Path(path)
    if is_snapshot(path):
        return Snapshot(path)
    if path.is_dir():
        opened = HuggingFaceDirectory(path, import_torch=import_torch)
    else:
        opened = GgufFile(path)
    try:
        if isinstance(opened, GgufFile):
            family = family_of_gguf(opened.metadata)
            assert family.config_from_gguf is not None, "the registry asked for its name"
            assert family.gguf_weights is not None, "a family describes GGUF or it doesn't"
            config = family.config_from_gguf(opened.metadata, opened.tensors)
            weights = family.gguf_weights(config)
        else:
            family = family_of_hf(opened.config)
            config = family.config_from_hf(opened.config, opened.generation_config)
            weights = family.hf_weights(config)
        return Checkpoint(opened, path=path, config=config, weights=weights)
    except BaseException:
        opened.close()
        raise


def _match(
    tensors: Mapping[str, StoredTensor], config: ModelConfig, weights: WeightMap, source: str
) -> tuple[TensorLoad, ...]:
    """Pair every expected tensor with the stored one; refuse any left over."""
    shapes = tensor_shapes(config)
    prefix = weights.optional_prefix
    if prefix and not any(name.startswith(prefix) for name in tensors):
        tensors = {prefix + name: stored for name, stored in tensors.items()}
    tensors = {weights.renamed.get(name, name): stored for name, stored in tensors.items()}
    loads: list[TensorLoad] = []
    for placement in weights.placements:
        stored = tensors.get(placement.stored_name)
        shape = shapes[placement.name]
        if stored is None:
            raise CheckpointError(
                f"the tensor is missing from {source}",
                field="tensor",
                value=placement.stored_name,
                remedy=f"{DOWNLOAD_AGAIN}, or use a checkpoint that has it",
            )
        if stored.shape != placement.stored_shape(shape):
            raise CheckpointError(
                f"the tensor has shape {stored.shape} instead of "
                f"{placement.stored_shape(shape)}, which the configuration of {source} gives it",
                field="tensor",
                value=placement.stored_name,
                remedy="use the configuration and the weights of the same model",
            )
        if stored.encoding.name in MASKS:
            raise CheckpointError(
                f"the tensor holds {stored.encoding.name}, which no weight can be ({source})",
                field="tensor",
                value=placement.stored_name,
                remedy=DOWNLOAD_AGAIN,
            )
        wide = is_wide(config, split_name(placement.name)[0])
        loads.append(TensorLoad(placement=placement, stored=stored, shape=shape, is_wide=wide))
    _refuse_unexpected(tensors, weights, source)
    return tuple(loads)


def _refuse_unexpected(
    tensors: Mapping[str, StoredTensor], weights: WeightMap, source: str
) -> None:
    placed = {placement.stored_name for placement in weights.placements}
    for name, stored in tensors.items():
        if name in placed or weights.harmless.fullmatch(name):
            continue
        if name in weights.duplicates and _equal(stored, tensors[weights.duplicates[name]]):
            continue
        raise CheckpointError(
            f"the tensor has no place in the model, so leaving it out would change results "
            f"({source})",
            field="tensor",
            value=name,
            remedy="use a checkpoint of a supported model",
        )


def _equal(stored: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors have the same encoding, shape and bytes."""
    if (stored.shape, stored.encoding) != (other.shape, other.encoding):
        return False
    at_a_time = max(1, (1 << 20) // stored.line_bytes)
    for first in range(0, stored.num_lines, at_a_time):
        count = min(at_a_time, stored.num_lines - first)
        if (stored.read_lines(first, count) != other.read_lines(first, count)).any():
            return False
    return True
