"""Packing by the native library: what ``pack`` does in numpy, many times as fast."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from pallas_kernels.linear.format import GROUP, PANEL, FormatName
from pallas_kernels.linear.native import FORMAT_NUMBERS
from pallas_kernels.linear.packed import PackedMatrix
from pallas_kernels.native import native_library, native_obstacle

# The library's numbers of what files hold, and the bytes of a group of 32 weights.
_ENCODINGS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "F32": (0, 128),
        "F16": (1, 64),
        "BF16": (2, 64),
        "Q8_0": (3, 34),
        "Q4_0": (4, 18),
        "Q4_1": (5, 20),
    }
)
_DENSE = ("F32", "F16", "BF16")


def can_pack_native(encoding: str, format: FormatName) -> bool:
    """Whether ``pack_native`` serves here, from this encoding of a file to this format."""
    if encoding not in _ENCODINGS or native_library() is None:
        return False
    if encoding in _DENSE:
        return format in ("float32", "bfloat16", "int8")
    return format in ("float32", "bfloat16", encoding.lower())


def pack_native(
    lines: UInt8[np.ndarray, "n bytes"],
    encoding: str,
    into: PackedMatrix,
    *,
    layer: int,
    first: int = 0,
    order: Int64[np.ndarray, "m"] | None = None,
    num_threads: int = 1,
) -> bool:
    """Put a file's lines into their place, output features from ``first`` on.

    The bits are those that ``pack_values`` and ``pack_blocks`` write. Whole panels are written, as
    there. Blocks keep their format without loss, or become float32 or bfloat16; dense values
    become float32, bfloat16 or int8. Other threads of Python run meanwhile and may fill other
    panels.

    Args:
        lines: bytes as they lie in the file, a line for each output feature.
        encoding: what they mean: F32, F16, BF16, Q8_0, Q4_0 or Q4_1.
        into: a matrix of numpy arrays.
        layer: which of its layers.
        first: a multiple of 16.
        order: which line each output feature is; None: one after another.
        num_threads: of the library's pool.

    Returns:
        Whether all values are finite; for blocks, all scales and minimums.

    Raises:
        ValueError: lines that don't fit the matrix, or a conversion that there isn't.
    """
    if not can_pack_native(encoding, into.format):
        reason = native_obstacle() or f"there is no conversion to {into.format}"
        raise ValueError(f"encoding={encoding!r}: {reason}; use pack_values or pack_blocks")
    count = len(lines) if order is None else len(order)
    _check(lines, encoding, into, layer, first, count)
    if order is not None:
        order = np.ascontiguousarray(order, np.int64)
        if count and (order.min() < 0 or order.max() >= len(lines)):
            raise ValueError(f"order: must name lines 0 to {len(lines) - 1}")
    panel = first // PANEL
    finite = _packer()(
        lines.ctypes.data,
        lines.strides[0],
        None if order is None else order.ctypes.data,
        count,
        into.in_features,
        _ENCODINGS[encoding][0],
        FORMAT_NUMBERS[into.format],
        *(_address(stack, layer, panel) for stack in (into.codes, into.scales, into.mins)),
        num_threads,
    )
    return bool(finite)


def _check(
    lines: np.ndarray, encoding: str, into: PackedMatrix, layer: int, first: int, count: int
) -> None:
    width = into.in_features * _ENCODINGS[encoding][1] // GROUP
    has_groups = encoding in _DENSE or into.in_features % GROUP == 0
    if lines.ndim != 2 or lines.dtype != np.uint8 or lines.shape[1] != width or not has_groups:
        raise ValueError(
            f"lines {lines.dtype}{lines.shape}: must be uint8 [n, {width}], "
            f"{into.in_features} values of {encoding}"
        )
    if lines.shape[1] > 1 and lines.strides[1] != 1:
        raise ValueError("lines: the bytes of a line must lie one after another")
    if not 0 <= layer < into.num_layers:
        raise ValueError(f"layer={layer}: must be from 0 to {into.num_layers - 1}")
    into.check_lines(first, count)
    for stack in (into.codes, into.scales, into.mins):
        if stack is not None and not (stack.flags.c_contiguous and stack.flags.writeable):
            raise ValueError("into: its arrays must be contiguous and writeable")


def _address(stack: np.ndarray | None, layer: int, panel: int) -> int | None:
    """Where a panel of a layer begins."""
    if stack is None:
        return None
    return stack.ctypes.data + layer * stack.strides[0] + panel * stack.strides[1]


@functools.cache
def _packer() -> Callable[..., Any]:
    library = native_library()
    assert library is not None  # ``can_pack_native`` has looked
    packer = library.functions.fastgen_pack
    pointer, integer, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    packer.argtypes = [
        *(pointer, integer, pointer, integer, integer, small, small),
        *(pointer, pointer, pointer, small),
    ]
    packer.restype = ctypes.c_bool
    return packer
