"""Tensors and descriptions of a Hugging Face directory with safetensors files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TypeGuard

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.family import JsonObject
from fastgen_jax.models.weights.stored import (
    BF16,
    DOWNLOAD_AGAIN,
    F16,
    F32,
    MASKS,
    StoredTensor,
    WeightFile,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_NUMBERS = {"F32": F32, "F16": F16, "BF16": BF16}
_ENCODINGS = {**_NUMBERS, **MASKS}
_LENGTH_BYTES = 8
# The limit of the format's reference implementation.
_MAX_HEADER_BYTES = 100_000_000


class HuggingFaceDirectory:
    """An open directory: ``config``, ``generation_config`` and ``tensors`` by stored name.

    Reads model.safetensors, or else the shards of model.safetensors.index.json. Raises
    CheckpointError naming the file and the tensor. ``close`` closes the files.
    """

    def __init__(self, directory: Path) -> None:
        self.config = read_json(directory / "config.json")
        generation = directory / "generation_config.json"
        self.generation_config = read_json(generation) if generation.exists() else {}
        self.tensors: dict[str, StoredTensor] = {}
        opened: list[WeightFile] = []
        try:
            if (directory / SINGLE_FILE).exists() or not (directory / INDEX_FILE).exists():
                self._open_single(directory, opened)
            else:
                self._open_shards(directory, opened)
        except BaseException:
            _close(opened)
            raise
        self.files = tuple(opened)

    def close(self) -> None:
        """Close the files; closing twice is harmless."""
        _close(self.files)

    def _open_single(self, directory: Path, opened: list[WeightFile]) -> None:
        path = directory / SINGLE_FILE
        if not path.exists():
            raise CheckpointError(
                f"the directory has neither {SINGLE_FILE} nor {INDEX_FILE}",
                field="directory",
                value=str(directory),
                remedy="download the checkpoint's safetensors files or convert its weights to them",
            )
        opened.append(WeightFile(path))
        self.tensors = read_safetensors(opened[0])

    def _open_shards(self, directory: Path, opened: list[WeightFile]) -> None:
        index = directory / INDEX_FILE
        shard_of = _weight_map(index)
        for shard in sorted(set(shard_of.values())):
            path = directory / shard
            if not path.exists():
                lacking = next(name for name, held_by in shard_of.items() if held_by == shard)
                raise CheckpointError(
                    f"the shard is missing; it holds tensor {lacking!r} among others",
                    field="file",
                    value=str(path),
                    remedy="download it into the directory",
                )
            opened.append(WeightFile(path))
            for name, tensor in read_safetensors(opened[-1]).items():
                if name in self.tensors:
                    other = self.tensors[name].file.path.name
                    raise tensor.file.damaged(f"tensor {name!r} is in {other} as well")
                self.tensors[name] = tensor
        for name, shard in shard_of.items():
            if name not in self.tensors or self.tensors[name].file.path.name != shard:
                raise CheckpointError(
                    f"the shard lacks tensor {name!r}, which {INDEX_FILE} says it holds",
                    field="file",
                    value=str(directory / shard),
                    remedy="download the shard and the index again",
                )


def read_json(path: Path) -> JsonObject:
    """Return the JSON object in a file; CheckpointError if it is missing or not an object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"the file can't be read: {error.strerror}",
            field="file",
            value=str(path),
            remedy="download the checkpoint again",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(path, "not a JSON object")
    return content


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


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(index, "no weight_map")
    for name, shard in weight_map.items():
        # A shard is a plain file of the directory: a path in the index must lead nowhere else.
        if not isinstance(shard, str) or shard in ("", "..") or Path(shard).name != shard:
            raise _damaged(index, f"tensor {name!r} is in {shard!r}, which isn't a file name")
    return weight_map


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(problem, field="file", value=str(path), remedy=DOWNLOAD_AGAIN)


def _close(files: list[WeightFile] | tuple[WeightFile, ...]) -> None:
    for file in files:
        file.close()
