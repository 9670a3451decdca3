"""Turning stored tensors into arrays of our layout, on a few threads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

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
    """A tensor to load: where it is stored, where it goes and its shape in our layout."""

    placement: TensorPlacement
    stored: StoredTensor
    shape: tuple[int, ...]

    def decode_finite(self, raw: np.ndarray) -> np.ndarray:
        """Return the values of raw lines; CheckpointError where any isn't finite."""
        values = self.stored.encoding.decode(raw)
        if not np.isfinite(values).all():
            raise self.not_finite()
        return values

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

    While the caller uses one tensor the next one is prepared, so two are in memory at a time.
    Raises CheckpointError for unreadable bytes and for values that aren't finite.
    """
    executor = ThreadPoolExecutor(num_threads(), thread_name_prefix="fastgen-weights")
    try:
        pending: _Pending | None = None
        for load in loads:
            following = _start(load, dtype, executor)
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


def _start(load: TensorLoad, dtype: np.dtype, executor: ThreadPoolExecutor) -> _Pending:
    values = aligned_empty(load.shape, dtype)
    num_lines = load.stored.num_lines
    length = _piece_lines(load)
    pieces = [
        executor.submit(_load_piece, load, values, first, min(length, num_lines - first))
        for first in range(0, num_lines, length)
    ]
    return _Pending(load.placement.name, values, pieces)


def _finish(pending: _Pending) -> tuple[str, np.ndarray]:
    for piece in pending.pieces:
        piece.result()
    return pending.name, pending.values


def _piece_lines(load: TensorLoad) -> int:
    """Return how many lines make a piece: whole heads where their lines change places."""
    lines = max(1, PIECE_VALUES // load.stored.line_values)
    head = load.placement.interleaved_head_dim or 1
    return max(1, lines // head) * head


def _load_piece(load: TensorLoad, values: np.ndarray, first: int, count: int) -> None:
    """Write the stored lines [first, first + count) to their place in ``values``."""
    raw = load.stored.read_lines(first, count)
    if load.placement.interleaved_head_dim:
        raw = deinterleave(raw, load.placement.interleaved_head_dim)
    piece = load.decode_finite(raw).astype(values.dtype, copy=False)
    if load.placement.transpose:
        _bits(values)[:, first : first + count] = _bits(piece).T
    else:
        values.reshape(load.stored.num_lines, -1)[first : first + count] = piece


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
