"""Turning stored tensors into packed stacks of layers, on a few threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.tensors import MATRICES, is_of_layer, split_name
from fastgen_jax.models.weights.aligned import aligned_empty
from fastgen_jax.models.weights.loading import (
    PIECE_VALUES,
    TensorLoad,
    deinterleave,
    load_piece,
    num_threads,
)
from fastgen_jax.models.weights.packing import PACKED_ENCODINGS, Stack
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
        by_stack[split_name(load.placement.name)[0]].append(load)
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
    if isinstance(shape, PackedMatrix):
        matrix = allocate(shape, aligned_empty)
        pieces = [piece for load in loads for piece in _start_matrix(load, matrix, executor)]
        return _Pending(name, matrix, pieces)
    arrays = aligned_empty(shape.shape, np.dtype(shape.dtype))
    pieces: list[Future[None]] = []
    for load in loads:
        full_name = load.placement.name
        of_layer = arrays[split_name(full_name)[1]] if is_of_layer(full_name) else arrays
        into = load.place_in(of_layer)
        pieces += [
            executor.submit(load_piece, load, into, first, count)
            for first, count in load.pieces(1, PIECE_VALUES)
        ]
    return _Pending(name, arrays, pieces)


def _start_matrix(
    load: TensorLoad, into: PackedMatrix, executor: ThreadPoolExecutor
) -> list[Future[None]]:
    name, _ = split_name(load.placement.name)
    if name in MATRICES and not load.has_lines_of_outputs:
        return [executor.submit(_pack_columns, load, into)]
    # Asked here and not by the pieces, because the first to ask loads the library.
    work = _pack_piece_natively if _is_for_native(load, into) else _pack_piece
    return [
        executor.submit(work, load, into, first, count)
        for first, count in load.pieces(PANEL, PIECE_VALUES)
    ]


def _finish(pending: _Pending) -> tuple[str, Stack]:
    for piece in pending.pieces:
        piece.result()
    return pending.name, pending.stack


def _is_for_native(load: TensorLoad, into: PackedMatrix) -> bool:
    encoding = load.stored.encoding.name
    # Nothing is converted there, and numpy moves the words faster.
    is_moved_only = encoding == "F32" and into.format == "float32"
    return not is_moved_only and can_pack_native(encoding, into.format)


def _pack_piece_natively(load: TensorLoad, into: PackedMatrix, first: int, count: int) -> None:
    """Pack as ``_pack_piece`` does, to the same bits, with the native library."""
    raw = load.read(first, count)
    head_dim = load.placement.interleaved_head_dim
    order = deinterleave(np.arange(count), head_dim) if head_dim else None
    _, layer = split_name(load.placement.name)
    # On one thread: the pieces already share the cores.
    if not pack_native(
        raw, load.stored.encoding.name, into, layer=layer, first=first, order=order, num_threads=1
    ):
        raise load.not_finite()


def _pack_piece(load: TensorLoad, into: PackedMatrix, first: int, count: int) -> None:
    """Pack our lines [first, first + count) into their place."""
    raw = load.read(first, count)
    if load.placement.interleaved_head_dim:
        raw = deinterleave(raw, load.placement.interleaved_head_dim)
    _, layer = split_name(load.placement.name)
    stored = load.stored
    if PACKED_ENCODINGS.get(stored.encoding.name) == into.format:
        try:
            pack_blocks(raw, into, layer=layer, first=first)
        except ValueError as error:
            raise stored.file.damaged(f"tensor {stored.name!r}: {error}") from error
        return
    _pack_values(load, load.values(raw), into, first)


def _pack_columns(load: TensorLoad, into: PackedMatrix) -> None:
    """Pack a matrix whose stored lines are input features: whole, as lines must be turned."""
    values = load.values(load.read(0, load.num_lines))
    _pack_values(load, np.ascontiguousarray(values.T), into, 0)


def _pack_values(load: TensorLoad, values: np.ndarray, into: PackedMatrix, first: int) -> None:
    _, layer = split_name(load.placement.name)
    try:
        pack_values(values, into, layer=layer, first=first)
    except ValueError as error:
        raise ConfigError(
            f"tensor {load.stored.name!r} can't be kept so: {error}",
            field="quantization",
            value=into.format,
            remedy='leave it out, or use "int8"',
        ) from error
