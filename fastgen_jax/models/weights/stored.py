"""Tensors as they lie in a file: their encoding, their place and their bytes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.blocks import BLOCK_DECODERS

DOWNLOAD_AGAIN = "download the file again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How values are stored: in groups of ``group_values`` that take ``group_bytes`` each.

    ``dtype`` is None for quantized groups, which only ``decode`` can read.
    """

    name: str
    group_values: int
    group_bytes: int
    dtype: np.dtype | None = None

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Return the values of uint8 [N, bytes] as [N, values], float32 where quantized.

        Values that aren't quantized keep their type, and share the memory of ``raw``.
        """
        if self.dtype is not None:
            return raw.view(self.dtype)
        with np.errstate(all="ignore"):  # numbers that aren't finite are for the caller to find
            if self.name in BLOCK_DECODERS:
                blocks = raw.reshape(len(raw), -1, self.group_bytes)
                return BLOCK_DECODERS[self.name](blocks).reshape(len(raw), -1)
            # Imported here as it takes half a second, which other checkpoints needn't wait for.
            import gguf.quants

            # gguf.dequantize works in pieces of 16 lines, three times slower than a whole piece.
            return getattr(gguf.quants, self.name).dequantize_rows(raw)


F32 = Encoding(name="F32", group_values=1, group_bytes=4, dtype=np.dtype("<f4"))
F16 = Encoding(name="F16", group_values=1, group_bytes=2, dtype=np.dtype("<f2"))
BF16 = Encoding(name="BF16", group_values=1, group_bytes=2, dtype=np.dtype(ml_dtypes.bfloat16))
# What old checkpoints keep attention masks in; no weight may be.
MASKS = {
    name: Encoding(name=name, group_values=1, group_bytes=1, dtype=np.dtype(np.uint8))
    for name in ("BOOL", "U8")
}


class WeightFile:
    """A file opened for positioned reads; safe to share between threads.

    Raises CheckpointError when the file can't be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
            self.size = os.fstat(self._handle.fileno()).st_size
        except OSError as error:
            raise CheckpointError(
                f"the file can't be opened: {error.strerror}",
                field="file",
                value=str(path),
                remedy="check the path and the permissions",
            ) from error

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return self._handle.closed

    def read(self, offset: int, count: int, what: str) -> bytes:
        """Return exactly ``count`` bytes; CheckpointError naming ``what`` when there are fewer."""
        try:
            data = os.pread(self._handle.fileno(), count, offset)
            # Linux hands out at most 2 GiB a call.
            while data and len(data) < count:
                more = os.pread(self._handle.fileno(), count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except (OSError, ValueError) as error:
            raise self.damaged(f"{what} can't be read: {error}") from error
        if len(data) < count:
            raise self.damaged(
                f"the file is truncated in {what}: bytes {offset} to {offset + count} are needed, "
                f"the file ends at {offset + len(data)}"
            )
        return data

    def damaged(self, problem: str) -> CheckpointError:
        """Return an error that names this file, to be raised by the caller."""
        return CheckpointError(problem, field="file", value=str(self.path), remedy=DOWNLOAD_AGAIN)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._handle.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor's place in a file: ``shape`` is in C order, ``offset`` in bytes from the start."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    file: WeightFile
    offset: int

    @property
    def num_lines(self) -> int:
        """Number of lines, which follow the last axis; a vector is one."""
        return math.prod(self.shape[:-1])

    @property
    def line_values(self) -> int:
        """Number of values in one line."""
        return self.shape[-1]

    @property
    def line_bytes(self) -> int:
        """Number of bytes in one line."""
        return self.line_values // self.encoding.group_values * self.encoding.group_bytes

    @property
    def num_bytes(self) -> int:
        """Number of bytes the tensor takes in the file."""
        return self.num_lines * self.line_bytes

    def check_extent(self) -> None:
        """Raise CheckpointError unless lines hold whole groups and all bytes are in the file."""
        if math.prod(self.shape) == 0 or self.shape[-1] % self.encoding.group_values:
            raise self.file.damaged(
                f"tensor {self.name!r} has shape {self.shape}, which "
                f"{self.encoding.name} can't hold"
            )
        if self.offset + self.num_bytes > self.file.size:
            raise self.file.damaged(
                f"the file is truncated in tensor {self.name!r}, which ends at byte "
                f"{self.offset + self.num_bytes}, while the file has {self.file.size}"
            )

    def read_lines(self, first: int, count: int) -> np.ndarray:
        """Return the raw bytes of ``count`` lines as uint8 [count, line_bytes]."""
        start = self.offset + first * self.line_bytes
        data = self.file.read(start, count * self.line_bytes, f"tensor {self.name!r}")
        return np.frombuffer(data, np.uint8).reshape(count, self.line_bytes)
