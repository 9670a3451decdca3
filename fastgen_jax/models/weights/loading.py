"""Turning stored tensors into arrays of our layout, on a few threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from fastgen_jax.errors import CheckpointError, ConfigError
from fastgen_jax.models.weights.aligned import aligned_empty
from fastgen_jax.models.weights.family import Part, TensorPlacement
from fastgen_jax.models.weights.stored import StoredTensor
from fastgen_jax.models.weights.window import Window, WindowsOf, is_whole, whole, window_shape

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
        lines: which of our stored lines to load; None for all.
        columns: which values of each line, [first, end); None for all.
        matrices: which of the matrices that the tensor consists of, [first, end); None for all.
    """

    placement: TensorPlacement
    stored: StoredTensor
    shape: tuple[int, ...]
    is_wide: bool = False
    lines: Part | None = None
    columns: tuple[int, int] | None = None
    matrices: tuple[int, int] | None = None

    def within(self, window: Window) -> TensorLoad | None:
        """The same load of no more than a window of the tensor in our layout; None for nothing.

        Raises ConfigError where the window cuts a head whose lines change places, or a vector that
        is stored in pieces.
        """
        if is_whole(window, self.shape):
            return self
        if len(window) == 3 and not is_whole(window[:1], self.shape[:1]):
            first, end = window[0]
            if self.placement.num_pieces > 1 and not first <= self.placement.piece < end:
                return None
            found = self.within((*whole(self.shape[:1]), *window[1:]))
            assert found is not None, "only the first axis is stored in pieces"
            return replace(found, matrices=window[0])
        placement, shape, inner = self.placement, self.shape, window
        is_readable = True
        if placement.num_pieces > 1:
            shape = placement.piece_shape(shape)
            is_readable = window[0] == (0, self.shape[0])
            inner = window[1:] if len(shape) < len(self.shape) else (*whole(shape[:1]), *window[1:])
        *leading, rows, columns = ((0, 1), *inner) if len(shape) == 1 else inner
        height = 1 if len(shape) == 1 else shape[-2]
        if placement.transpose:
            rows, columns, height = columns, rows, shape[-1]
        lines = Part(period=height, start=rows[0], length=rows[1] - rows[0])
        head_dim = placement.interleaved_head_dim or 1
        cuts_a_head = lines.start % head_dim or lines.length % head_dim
        if cuts_a_head or not is_readable or not is_whole(tuple(leading), shape[: len(leading)]):
            raise ConfigError(
                f"the part {window} of {placement.name} can't be read by itself",
                field="tensor",
                value=self.stored.name,
                remedy="split the model over fewer devices",
            )
        return replace(self, lines=lines, columns=columns)

    @property
    def has_lines_of_outputs(self) -> bool:
        """Whether a stored line is an output feature, so that a part of them is a part of lines."""
        return self.placement.transpose

    @property
    def num_lines(self) -> int:
        """Stored lines to load."""
        count = self.stored.num_lines
        for part in (self._own_lines, self.lines):
            count = count if part is None else count // part.period * part.length
        if self._is_cut and self.matrices is not None:
            count = count // self.shape[0] * (self.matrices[1] - self.matrices[0])
        return count

    @property
    def _first_line(self) -> int:
        """How many of the lines are before the first to load."""
        if not self._is_cut or self.matrices is None:
            return 0
        return self.num_lines // (self.matrices[1] - self.matrices[0]) * self.matrices[0]

    @property
    def _is_cut(self) -> bool:
        """Whether matrices that lie in one stored tensor are left out."""
        return self.matrices is not None and self.placement.num_pieces == 1

    @property
    def _own_lines(self) -> Part | None:
        """Which of the stored lines are ours."""
        return self.placement.part if self.has_lines_of_outputs else None

    def pieces(self, multiple: int, piece_values: int) -> Iterator[tuple[int, int]]:
        """The first line and the number of lines of every piece of about so many values.

        Pieces begin at multiples of ``multiple``, and hold whole heads where lines change places.
        """
        unit = math.lcm(multiple, self.placement.interleaved_head_dim or 1)
        length = max(1, piece_values // self.stored.line_values // unit) * unit
        for first in range(0, self.num_lines, length):
            yield first, min(length, self.num_lines - first)

    def read(self, first: int, count: int) -> np.ndarray:
        """The raw bytes of lines [first, first + count) to load, as uint8, in the file's order."""
        pieces = [
            self.stored.read_lines(*run)
            for ours in _runs(self.lines, self._first_line + first, count)
            for run in _runs(self._own_lines, *ours)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def values(self, raw: np.ndarray) -> np.ndarray:
        """The values to load of raw lines; CheckpointError where any isn't finite."""
        encoding, columns = self.stored.encoding, self.columns
        part = None if self.has_lines_of_outputs else self.placement.part
        group = encoding.group_values
        if columns is not None and part is None and not any(end % group for end in columns):
            first, end = (place // group * encoding.group_bytes for place in columns)
            raw, columns = raw[:, first:end], None
        values = encoding.decode(raw)
        if part is not None:
            periods = values.reshape(len(values), -1, part.period)
            values = periods[:, :, part.start : part.start + part.length].reshape(len(values), -1)
        if columns is not None:
            values = values[:, slice(*columns)]
        if not np.isfinite(values).all():
            raise self.not_finite()
        if self.placement.add:
            values = values.astype(np.float32) + np.float32(self.placement.add)
        return values

    def place_in(self, tensor: np.ndarray) -> np.ndarray:
        """The view of the tensor, or of a window of it, that this piece fills."""
        placement = self.placement
        if placement.num_pieces == 1:
            return tensor
        if tensor.ndim == 3:
            first = 0 if self.matrices is None else self.matrices[0]
            return tensor[placement.piece - first]
        return tensor.reshape(placement.num_pieces, -1)[placement.piece]

    def not_finite(self) -> CheckpointError:
        """Return the error about values that are infinite or not a number."""
        return self.stored.file.damaged(
            f"tensor {self.stored.name!r} has values that are infinite or not a number"
        )


@dataclass(frozen=True, slots=True)
class _Pending:
    name: str
    window: Window
    values: np.ndarray
    pieces: list[Future[None]]


def load_windows(
    loads: Sequence[TensorLoad], dtype: np.dtype, windows_of: WindowsOf
) -> Iterator[tuple[str, Window, np.ndarray]]:
    """Yield (our name, window, its C-contiguous array in our layout and ``dtype``).

    Tensors come in the order of ``loads``, where the pieces of one stand together, and windows in
    the order of ``windows_of``. No more is decoded than what a window holds. While the caller uses
    one window the next one is prepared, so two are in memory at a time. Raises CheckpointError for
    unreadable bytes and for values that aren't finite, ConfigError for a window that can't be read
    by itself.
    """
    executor = ThreadPoolExecutor(num_threads(), thread_name_prefix="fastgen-weights")
    try:
        pending: _Pending | None = None
        for name, group in groupby(loads, key=lambda load: load.placement.name):
            of_tensor = list(group)
            for window in windows_of(name, of_tensor[0].shape):
                following = _start(of_tensor, window, dtype, executor)
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


def _start(
    loads: list[TensorLoad], window: Window, dtype: np.dtype, executor: ThreadPoolExecutor
) -> _Pending:
    kind = np.dtype(np.float32) if loads[0].is_wide else dtype
    within = (load.within(window) for load in loads)
    windowed = [load for load in within if load is not None]
    values = aligned_empty(window_shape(window), kind)
    pieces = [
        executor.submit(load_piece, load, load.place_in(values), first, count)
        for load in windowed
        for first, count in load.pieces(1, PIECE_VALUES)
    ]
    return _Pending(loads[0].placement.name, window, values, pieces)


def _finish(pending: _Pending) -> tuple[str, Window, np.ndarray]:
    for piece in pending.pieces:
        piece.result()
    return pending.name, pending.window, pending.values


def _runs(part: Part | None, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Runs (first, count) of all lines that hold the lines [first, first + count) of a part."""
    if part is None:
        yield first, count
        return
    while count:
        period, place = divmod(first, part.length)
        taken = min(count, part.length - place)
        yield period * part.period + part.start + place, taken
        first, count = first + taken, count - taken


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
