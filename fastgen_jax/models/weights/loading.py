"""Turning stored tensors into arrays of our layout, on a few threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.aligned import aligned_empty
from fastgen_jax.models.weights.family import TensorPlacement
from fastgen_jax.models.weights.stored import StoredTensor

# Values a thread handles at a time: small enough that a piece and its temporaries stay in the
# processor's cache, large enough that numpy's calls cost little; the best of 24 k to 880 k tried.
PIECE_VALUES = 1 << 18
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLoad:
    """A tensor, or a piece of one, to load.

    Attributes:
        placement: where it goes, and how it differs there.
        stored: where it is.
        shape: of the whole tensor in our layout.
        is_wide: whether it is kept in float32 whatever type the others have.
    """

    placement: TensorPlacement
    stored: StoredTensor
    shape: tuple[int, ...]
    is_wide: bool = False

    @property
    def has_lines_of_outputs(self) -> bool:
        """Whether a stored line is an output feature, so that a part of them is a part of lines."""
        return self.placement.transpose

    @property
    def num_lines(self) -> int:
        """Stored lines that are ours."""
        part = self.placement.part
        if part is None or not self.has_lines_of_outputs:
            return self.stored.num_lines
        return self.stored.num_lines // part.period * part.length

    def pieces(self, multiple: int, piece_values: int) -> Iterator[tuple[int, int]]:
        """The first line and the number of lines of every piece of about so many values.

        Pieces begin at multiples of ``multiple``, and hold whole heads where lines change places.
        """
        unit = math.lcm(multiple, self.placement.interleaved_head_dim or 1)
        length = max(1, piece_values // self.stored.line_values // unit) * unit
        for first in range(0, self.num_lines, length):
            yield first, min(length, self.num_lines - first)

    def read(self, first: int, count: int) -> np.ndarray:
        """The raw bytes of our lines [first, first + count), as uint8, in the file's order."""
        part = self.placement.part
        if part is None or not self.has_lines_of_outputs:
            return self.stored.read_lines(first, count)
        runs: list[np.ndarray] = []
        while count:
            period, place = divmod(first, part.length)
            taken = min(count, part.length - place)
            runs.append(self.stored.read_lines(period * part.period + part.start + place, taken))
            first, count = first + taken, count - taken
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def values(self, raw: np.ndarray) -> np.ndarray:
        """The values of raw lines that are ours; CheckpointError where any isn't finite."""
        values = self.stored.encoding.decode(raw)
        if not np.isfinite(values).all():
            raise self.not_finite()
        part = self.placement.part
        if part is not None and not self.has_lines_of_outputs:
            periods = values.reshape(len(values), -1, part.period)
            values = periods[:, :, part.start : part.start + part.length].reshape(len(values), -1)
        if self.placement.add:
            values = values.astype(np.float32) + np.float32(self.placement.add)
        return values

    def place_in(self, whole: np.ndarray) -> np.ndarray:
        """The view of the whole tensor that this piece fills."""
        placement = self.placement
        if placement.num_pieces == 1:
            return whole
        if whole.ndim == 3:
            return whole[placement.piece]
        return whole.reshape(placement.num_pieces, -1)[placement.piece]

    def not_finite(self) -> CheckpointError:
        """Return the error about values that are infinite or not a number."""
        return self.stored.file.damaged(
            f"tensor {self.stored.name!r} has values that are infinite or not a number"
        )


@dataclass(frozen=True, slots=True)
class _Pending:
    name: str
    values: np.ndarray
    pieces: list[Future[None]]


def load_tensors(loads: Sequence[TensorLoad], dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (our name, C-contiguous array in our layout and ``dtype``) in the order of ``loads``.

    Pieces of one tensor stand together in ``loads``. While the caller uses one tensor the next one
    is prepared, so two are in memory at a time. Raises CheckpointError for unreadable bytes and for
    values that aren't finite.
    """
    executor = ThreadPoolExecutor(num_threads(), thread_name_prefix="fastgen-weights")
    try:
        pending: _Pending | None = None
        for _, of_tensor in groupby(loads, key=lambda load: load.placement.name):
            following = _start(list(of_tensor), dtype, executor)
            if pending is not None:
                yield _finish(pending)
            pending = following
        if pending is not None:
            yield _finish(pending)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def num_threads() -> int:
    """Return how many threads prepare weights."""
    return min(_MAX_THREADS, os.cpu_count() or 1)


def _start(loads: list[TensorLoad], dtype: np.dtype, executor: ThreadPoolExecutor) -> _Pending:
    kind = np.dtype(np.float32) if loads[0].is_wide else dtype
    values = aligned_empty(loads[0].shape, kind)
    pieces = [
        executor.submit(load_piece, load, load.place_in(values), first, count)
        for load in loads
        for first, count in load.pieces(1, PIECE_VALUES)
    ]
    return _Pending(loads[0].placement.name, values, pieces)


def _finish(pending: _Pending) -> tuple[str, np.ndarray]:
    for piece in pending.pieces:
        piece.result()
    return pending.name, pending.values


def load_piece(load: TensorLoad, values: np.ndarray, first: int, count: int) -> None:
    """Write our lines [first, first + count) to their place in ``values``."""
    raw = load.read(first, count)
    if load.placement.interleaved_head_dim:
        raw = deinterleave(raw, load.placement.interleaved_head_dim)
    piece = load.values(raw).astype(values.dtype, copy=False)
    if load.placement.transpose:
        _put_columns(values, first, piece)
    else:
        values.reshape(load.num_lines, -1)[first : first + count] = piece


def _put_columns(values: np.ndarray, first: int, piece: np.ndarray) -> None:
    """Write lines to columns; those of several matrices one below the other where there are."""
    if values.ndim == 2:
        _bits(values)[:, first : first + len(piece)] = _bits(piece).T
        return
    width = values.shape[-1]
    while len(piece):
        matrix, column = divmod(first, width)
        taken = min(len(piece), width - column)
        _bits(values)[matrix, :, column : column + taken] = _bits(piece[:taken]).T
        first, piece = first + taken, piece[taken:]


def deinterleave(lines: np.ndarray, head_dim: int) -> np.ndarray:
    """Return lines [N, …] in the order that rotates halves, from the order that rotates neighbours.

    Within each head, line 2 i goes to i and line 2 i + 1 to i + head_dim / 2. Lines may still be
    encoded, as they move whole.
    """
    pairs = lines.reshape(-1, head_dim // 2, 2, *lines.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(lines.shape)


def _bits(values: np.ndarray) -> np.ndarray:
    # numpy copies its own types with strides several times faster than bfloat16.
    return values.view(f"u{values.dtype.itemsize}")
