"""The head of a GGUF file: its metadata and where its tensors lie.

The format is that of ggml's specification, versions 2 and 3, little-endian. Read here, as the
gguf package's reader takes seconds for the vocabulary of a small model.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.stored import WeightFile

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_AXES = 4
_COUNT = struct.Struct("<Q")

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensorInfo:
    """A tensor's entry in the head; ``shape`` in C order, ``offset`` from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Metadata as plain Python values (strings, numbers, flags, lists) and the tensors' entries."""

    metadata: dict[str, object]
    tensors: tuple[GgufTensorInfo, ...]


def read_gguf_header(file: WeightFile) -> GgufHeader:
    """Return the head of the file; CheckpointError when it is cut, corrupt or of another format."""
    if file.size == 0:
        raise file.damaged("the file is empty")
    with (
        open(file.path, "rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return _HeaderReader(file, data).read()


class _HeaderReader:
    """Walks through the head of a file, keeping the position."""

    def __init__(self, file: WeightFile, data: mmap.mmap) -> None:
        self._file = file
        self._data = data
        self._end = len(data)
        self._position = 0

    def read(self) -> GgufHeader:
        if self._take(4, "the magic number") != _MAGIC:
            raise self._file.damaged("not a GGUF file: it doesn't begin with 'GGUF'")
        self._check_version(self._u32("the version"))
        num_tensors = self._u64("the number of tensors")
        num_fields = self._u64("the number of metadata fields")
        metadata = self._metadata(num_fields)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._file.damaged(f"general.alignment={alignment!r} isn't a power of two")
        infos = [self._tensor_info() for _ in range(num_tensors)]
        self._check_names(infos)
        data_start = -(-self._position // alignment) * alignment
        return GgufHeader(
            metadata=metadata,
            tensors=tuple(self._placed(info, data_start, alignment) for info in infos),
        )

    def _check_version(self, version: int) -> None:
        if version in _VERSIONS:
            return
        if version & 0xFFFF == 0:
            raise CheckpointError(
                "big-endian GGUF files aren't supported",
                field="file",
                value=str(self._file.path),
                remedy="convert it with gguf-convert-endian",
            )
        raise CheckpointError(
            f"GGUF version {version} isn't supported ({self._file.path})",
            field="version",
            value=version,
            remedy=f"convert the file to version {_VERSIONS[-1]}",
        )

    def _metadata(self, count: int) -> dict[str, object]:
        metadata: dict[str, object] = {}
        for index in range(count):
            key = self._string(f"the key of metadata field {index}")
            if key in metadata:
                raise self._file.damaged(f"metadata field {key!r} occurs twice")
            metadata[key] = self._value(f"metadata field {key!r}")
        return metadata

    def _value(self, what: str) -> object:
        type_id = self._u32(what)
        if type_id == _STRING:
            return self._string(what)
        if type_id == _ARRAY:
            item_type, count = self._u32(what), self._u64(what)
            if item_type == _STRING:
                return self._strings(count, what)
            return self._scalars(item_type, count, what)
        return self._scalars(type_id, 1, what)[0]

    def _scalars(self, type_id: int, count: int, what: str) -> Sequence[object]:
        dtype = _SCALARS.get(type_id)
        if dtype is None:
            raise self._file.damaged(f"{what} has the unknown type {type_id}")
        values = self._take(count * dtype.itemsize, what)
        if type_id == _BOOL:
            return [value != 0 for value in values]
        return np.frombuffer(values, dtype).tolist()

    def _string(self, what: str) -> str:
        return self._text(self._take(self._u64(what), what), what)

    def _strings(self, count: int, what: str) -> list[str]:
        # Vocabularies and merges have hundreds of thousands of strings, hence no calls in here.
        self._expect(count * _COUNT.size, what)
        data, position, end = self._data, self._position, self._end
        strings: list[str] = []
        for _ in range(count):
            start = position + 8
            if start > end:
                raise self._cut(what)
            stop = start + _COUNT.unpack_from(data, position)[0]
            if stop > end:
                raise self._cut(what)
            try:
                strings.append(data[start:stop].decode())
            except UnicodeDecodeError:
                raise self._file.damaged(f"{what} isn't valid UTF-8") from None
            position = stop
        self._position = position
        return strings

    def _tensor_info(self) -> GgufTensorInfo:
        name = self._string("the list of tensors")
        what = f"the entry of tensor {name!r}"
        num_axes = self._u32(what)
        if not 1 <= num_axes <= _MAX_AXES:
            raise self._file.damaged(f"{what} has {num_axes} axes")
        shape = tuple(self._u64(what) for _ in range(num_axes))
        return GgufTensorInfo(
            name=name,
            shape=shape[::-1],
            type_id=self._u32(what),
            offset=self._u64(what),
        )

    def _check_names(self, infos: list[GgufTensorInfo]) -> None:
        names: set[str] = set()
        for info in infos:
            if info.name in names:
                raise self._file.damaged(f"tensor {info.name!r} occurs twice")
            names.add(info.name)

    def _placed(self, info: GgufTensorInfo, data_start: int, alignment: int) -> GgufTensorInfo:
        if info.offset % alignment:
            raise self._file.damaged(
                f"tensor {info.name!r} doesn't begin at a multiple of {alignment} bytes"
            )
        return GgufTensorInfo(
            name=info.name,
            shape=info.shape,
            type_id=info.type_id,
            offset=data_start + info.offset,
        )

    def _u32(self, what: str) -> int:
        return int.from_bytes(self._take(4, what), "little")

    def _u64(self, what: str) -> int:
        return int.from_bytes(self._take(8, what), "little")

    def _text(self, data: bytes, what: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._file.damaged(f"{what} isn't valid UTF-8") from None

    def _take(self, count: int, what: str) -> bytes:
        self._expect(count, what)
        start = self._position
        self._position = start + count
        return self._data[start : self._position]

    def _expect(self, count: int, what: str) -> None:
        if count > self._end - self._position:
            raise self._cut(what)

    def _cut(self, what: str) -> CheckpointError:
        return self._file.damaged(f"the file is truncated in {what}, or its head is corrupt")
