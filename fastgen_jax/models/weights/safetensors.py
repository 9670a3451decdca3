"""Tensors of safetensors files."""

from __future__ import annotations

import json
import math
from typing import TypeGuard

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.family import JsonObject
from fastgen_jax.models.weights.stored import (
    BF16,
    F16,
    F32,
    MASKS,
    StoredTensor,
    WeightFile,
)

_NUMBERS = {"F32": F32, "F16": F16, "BF16": BF16}
_ENCODINGS = {**_NUMBERS, **MASKS}
_LENGTH_BYTES = 8
# The limit of the format's reference implementation.
_MAX_HEADER_BYTES = 100_000_000


def read_safetensors(file: WeightFile) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name; CheckpointError if it is cut or corrupt."""
    length = int.from_bytes(file.read(0, _LENGTH_BYTES, "the header's length"), "little")
    if length > min(_MAX_HEADER_BYTES, file.size - _LENGTH_BYTES):
        raise file.damaged("the file is truncated in its header, or isn't a safetensors file")
    header = _parse_header(file, file.read(_LENGTH_BYTES, length, "the header"))
    data_start = _LENGTH_BYTES + length
    tensors = {
        name: _stored(name, entry, file, data_start)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_cover(tensors, file, data_start)
    return tensors


def _parse_header(file: WeightFile, data: bytes) -> JsonObject:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise file.damaged(f"the header isn't valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise file.damaged("the header isn't a JSON object")
    return header


def _stored(name: str, entry: object, file: WeightFile, data_start: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise file.damaged(f"the header's entry of tensor {name!r} is malformed")
    encoding = _ENCODINGS.get(str(fields.get("dtype")))
    if encoding is None:
        raise CheckpointError(
            f"tensor {name!r} has a type that isn't supported ({file.path})",
            field="dtype",
            value=fields.get("dtype"),
            remedy=f"use a checkpoint in {', '.join(_NUMBERS)}",
        )
    if offsets[1] - offsets[0] != math.prod(shape) * encoding.group_bytes:
        raise file.damaged(f"tensor {name!r} has another number of bytes than its shape {shape}")
    tensor = StoredTensor(
        name=name,
        shape=tuple(shape),
        encoding=encoding,
        file=file,
        offset=data_start + offsets[0],
    )
    tensor.check_extent()
    return tensor


def _check_cover(tensors: dict[str, StoredTensor], file: WeightFile, data_start: int) -> None:
    """Hold the file to the format's rule that tensors fill it without gaps or overlaps."""
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset != position:
            raise file.damaged(
                f"tensor {tensor.name!r} begins at byte {tensor.offset}, not at {position}, where "
                "the one before it ends"
            )
        position += tensor.num_bytes
    if position != file.size:
        raise file.damaged(f"the last tensor ends at byte {position}, the file at {file.size}")


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
