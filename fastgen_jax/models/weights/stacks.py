"""Turning stored tensors into packed stacks of layers, on a few threads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.aligned import aligned_empty
from fastgen_jax.models.weights.loading import PIECE_VALUES, TensorLoad, deinterleave, num_threads
from fastgen_jax.models.weights.packing import PACKED_ENCODINGS, Stack, stack_of
from pallas_kernels.linear import PackedMatrix, allocate, pack_blocks, pack_values
from pallas_kernels.linear.format import PANEL
from pallas_kernels.linear.native_pack import can_pack_native, pack_native


@dataclass(frozen=True, slots=True)
class _Pending:
    name: str
    stack: Stack
    pieces: list[Future[None]]


def load_stacks(
    loads: Sequence[TensorLoad], shapes: Mapping[str, PackedMatrix | jax.ShapeDtypeStruct]
) -> Iterator[tuple[str, Stack]]:
    """Yield (name, filled stack) for every one of ``shapes``, in their order.

    Arrays start at multiples of 64 bytes. While the caller uses one stack the next one is
    prepared, so two are in memory at a time. Raises CheckpointError for unreadable bytes and for
    values that aren't finite, and ConfigError for values that the format can't hold.
    """
    by_stack: dict[str, list[TensorLoad]] = {name: [] for name in shapes}
    for load in loads:
        by_stack[stack_of(load.placement.name)[0]].append(load)
    executor = ThreadPoolExecutor(num_threads(), thread_name_prefix="fastgen-weights")
    try:
        pending: _Pending | None = None
        for name, shape in shapes.items():
            following = _start(name, shape, by_stack[name], executor)
            if pending is not None:
                yield _finish(pending)
            pending = following
        if pending is not None:
            yield _finish(pending)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start(
    name: str,
    shape: PackedMatrix | jax.ShapeDtypeStruct,
    loads: Sequence[TensorLoad],
    executor: ThreadPoolExecutor,
) -> _Pending:
    pieces: list[Future[None]] = []
    if isinstance(shape, PackedMatrix):
        matrix = allocate(shape, aligned_empty)
        for load in loads:
            num_lines, length = load.stored.num_lines, _piece_lines(load)
            # Asked here and not by the pieces, because the first to ask loads the library.
            work = _pack_piece_natively if _is_for_native(load, matrix) else _pack_piece
            pieces += [
                executor.submit(work, load, matrix, first, min(length, num_lines - first))
                for first in range(0, num_lines, length)
            ]
        return _Pending(name, matrix, pieces)
    vectors = aligned_empty(shape.shape, np.dtype(shape.dtype))
    rows = vectors if vectors.ndim > 1 else vectors[None]
    pieces = [executor.submit(_copy_vector, load, rows) for load in loads]
    return _Pending(name, vectors, pieces)


def _finish(pending: _Pending) -> tuple[str, Stack]:
    for piece in pending.pieces:
        piece.result()
    return pending.name, pending.stack


def _piece_lines(load: TensorLoad) -> int:
    """Lines that make a piece: whole panels, and whole heads where their lines change places."""
    unit = math.lcm(PANEL, load.placement.interleaved_head_dim or 1)
    return max(1, PIECE_VALUES // load.stored.line_values // unit) * unit


def _is_for_native(load: TensorLoad, into: PackedMatrix) -> bool:
    encoding = load.stored.encoding.name
    # Nothing is converted there, and numpy moves the words faster.
    is_moved_only = encoding == "F32" and into.format == "float32"
    return not is_moved_only and can_pack_native(encoding, into.format)


def _pack_piece_natively(load: TensorLoad, into: PackedMatrix, first: int, count: int) -> None:
    """Pack as ``_pack_piece`` does, to the same bits, with the native library."""
    raw = load.stored.read_lines(first, count)
    head_dim = load.placement.interleaved_head_dim
    order = deinterleave(np.arange(count), head_dim) if head_dim else None
    _, layer = stack_of(load.placement.name)
    # On one thread: the pieces already share the cores.
    if not pack_native(
        raw, load.stored.encoding.name, into, layer=layer, first=first, order=order, num_threads=1
    ):
        raise load.not_finite()


def _pack_piece(load: TensorLoad, into: PackedMatrix, first: int, count: int) -> None:
    """Pack the stored lines [first, first + count) into their place."""
    raw = load.stored.read_lines(first, count)
    if load.placement.interleaved_head_dim:
        raw = deinterleave(raw, load.placement.interleaved_head_dim)
    _, layer = stack_of(load.placement.name)
    stored = load.stored
    if PACKED_ENCODINGS.get(stored.encoding.name) == into.format:
        try:
            pack_blocks(raw, into, layer=layer, first=first)
        except ValueError as error:
            raise stored.file.damaged(f"tensor {stored.name!r}: {error}") from error
        return
    values = load.decode_finite(raw)
    try:
        pack_values(values, into, layer=layer, first=first)
    except ValueError as error:
        raise ConfigError(
            f"tensor {stored.name!r} can't be kept so: {error}",
            field="quantization",
            value=into.format,
            remedy='leave it out, or use "int8"',
        ) from error


def _copy_vector(load: TensorLoad, rows: np.ndarray) -> None:
    _, layer = stack_of(load.placement.name)
    values = load.decode_finite(load.stored.read_lines(0, 1))
    rows[layer] = values.reshape(-1).astype(rows.dtype, copy=False)
