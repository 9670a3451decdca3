"""Tensors of a legacy ``pytorch_model.bin``, read by torch itself, weights and nothing else."""

from __future__ import annotations

import importlib
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.stored import (
    BF16,
    F16,
    F32,
    MASKS,
    Encoding,
    StoredTensor,
    WeightFile,
)

_ENCODINGS: Mapping[str, Encoding] = {
    "torch.float32": F32,
    "torch.float16": F16,
    "torch.bfloat16": BF16,
    "torch.bool": MASKS["BOOL"],
    "torch.uint8": MASKS["U8"],
}


class Torch(Protocol):
    """What is asked of the torch package."""

    @property
    def uint8(self) -> Any:
        """The type of bytes."""
        ...

    def load(self, f: str, *, map_location: str, weights_only: bool, mmap: bool) -> Any:
        """The tensors by name; as views of the mapped file with ``mmap``."""
        ...


ImportTorch = Callable[[], Torch]


def import_torch() -> Torch:
    """Return the torch package; ImportError if it isn't installed."""
    return cast("Torch", importlib.import_module("torch"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedTensor(StoredTensor):
    """A tensor whose bytes are in ``lines``, uint8 [lines, bytes]: most often a mapped file's."""

    lines: np.ndarray

    def read_lines(self, first: int, count: int) -> np.ndarray:
        """Return the raw bytes of ``count`` lines as uint8 [count, line_bytes]."""
        return self.lines[first : first + count]


def read_torch_file(file: WeightFile, import_torch: ImportTorch) -> dict[str, StoredTensor]:
    """Return the tensors of a ``.bin`` file by name.

    Nothing but tensors and plain containers is unpickled. The file is mapped, not read, unless it
    is older than torch 1.6. Raises CheckpointError where torch isn't installed, for a file that
    holds anything else, and for one that is damaged.
    """
    try:
        torch = import_torch()
    except ImportError as error:
        raise CheckpointError(
            "weights in PyTorch's own format are read by torch, which isn't installed",
            field="file",
            value=str(file.path),
            remedy='install it with `pip install "fastgen-jax[torch]"`, or download or convert the '
            "weights as safetensors",
        ) from error
    found = _load(torch, file)
    if not isinstance(found, Mapping):
        raise file.damaged(f"it holds a {type(found).__name__}, not tensors by name")
    return {str(name): _stored(str(name), tensor, file, torch) for name, tensor in found.items()}


def _load(torch: Torch, file: WeightFile) -> Any:
    try:
        return torch.load(
            str(file.path),
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(file.path),
        )
    # torch's own message advises to load everything, which would run whatever is in the file.
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "the file is damaged, or holds more than weights, which isn't loaded, as it could run "
            "code",
            field="file",
            value=str(file.path),
            remedy="use the model's safetensors files",
        ) from error
    # Whatever else torch raises, by the file's age and what is wrong with it.
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0].partition(". ")[0]
        raise file.damaged(
            f"torch doesn't read it as weights: {type(error).__name__}: {first}"
        ) from error


def _stored(name: str, tensor: Any, file: WeightFile, torch: Torch) -> StoredTensor:
    kind = str(getattr(tensor, "dtype", type(tensor).__name__))
    encoding = _ENCODINGS.get(kind)
    if encoding is None:
        raise CheckpointError(
            f"tensor {name!r} has a type that isn't supported ({file.path})",
            field="dtype",
            value=kind,
            remedy=f"use a checkpoint in {', '.join(_ENCODINGS)}",
        )
    shape = tuple(tensor.shape) or (1,)
    if math.prod(shape) == 0:
        raise file.damaged(f"tensor {name!r} has shape {shape}, which holds nothing")
    lines = tensor.detach().contiguous().reshape(-1, shape[-1]).view(torch.uint8).numpy()
    return MappedTensor(name=name, shape=shape, encoding=encoding, file=file, offset=0, lines=lines)
