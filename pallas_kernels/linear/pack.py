"""Weights as files hold them, put into their place in packed matrices."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, UInt8

from pallas_kernels.linear.encode import EncodedLines, encode_blocks, encode_values
from pallas_kernels.linear.format import PANEL, FormatName
from pallas_kernels.linear.packed import PackedMatrix

Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]


def allocate(shapes: PackedMatrix, empty: Allocate = np.empty) -> PackedMatrix:
    """A matrix of uninitialized numpy arrays with the shapes of an abstract one."""
    return jax.tree.map(lambda leaf: empty(leaf.shape, np.dtype(leaf.dtype)), shapes)


def pack(values: Float[np.ndarray, "L N K"], format: FormatName) -> PackedMatrix:
    """Dense weights of all layers, each [out, in] as files have them, in a format.

    Raises:
        ValueError: the format can't hold K input features, or not these values.
    """
    num_layers, out_features, in_features = values.shape
    packed = allocate(
        PackedMatrix.abstract(
            format, num_layers=num_layers, in_features=in_features, out_features=out_features
        )
    )
    for layer, lines in enumerate(values):
        pack_values(lines, packed, layer=layer)
    return packed


def pack_values(
    lines: Float[np.ndarray, "n K"], into: PackedMatrix, *, layer: int, first: int = 0
) -> None:
    """Put dense weights of output features from ``first`` on into their place.

    ``lines`` are float32, float16 or bfloat16 and are quantized where the format is. Whole panels
    are written: ``first`` is a multiple of 16, and n too unless the lines are the last. Threads
    may fill different panels of a matrix at once.

    Raises:
        ValueError: lines that don't fit the matrix, or values that its format can't hold.
    """
    if lines.ndim != 2 or lines.shape[1] != into.in_features:
        raise ValueError(f"lines {lines.shape}: must be [n, {into.in_features}]")
    _put(encode_values(into.format, lines), into, layer, first)


def pack_blocks(
    blocks: UInt8[np.ndarray, "n bytes"], into: PackedMatrix, *, layer: int, first: int = 0
) -> None:
    """Put lines of GGUF blocks into their place in a matrix of the same format, without loss.

    As ``pack_values`` otherwise.

    Raises:
        ValueError: blocks that don't fit the matrix, or scales that aren't finite.
    """
    encoded = encode_blocks(into.format, blocks)
    for scales in (encoded.scales, encoded.mins):
        if scales is not None and not np.isfinite(scales).all():
            raise ValueError("blocks have scales that are infinite or not a number")
    words = into.weight_format.num_words(into.in_features)
    if encoded.words.shape[1] != words:
        raise ValueError(f"blocks {blocks.shape}: must hold {into.in_features} values a line")
    _put(encoded, into, layer, first)


def _put(encoded: EncodedLines, into: PackedMatrix, layer: int, first: int) -> None:
    end = first + len(encoded.words)
    into.check_lines(first, end - first)
    shape = into.weight_format.words_shape(into.num_layers, into.in_features, into.out_features)
    panels = slice(first // PANEL, -(-end // PANEL))
    words = into.codes.view(np.uint32).reshape(shape)
    _transpose(encoded.words, words[layer, panels])
    for name in ("scales", "mins"):
        lines = getattr(encoded, name)
        if lines is not None:
            # As integers: numpy moves those faster than float16.
            stack = getattr(into, name)
            unsigned = f"u{stack.dtype.itemsize}"
            _transpose(lines.view(unsigned), stack.view(unsigned)[layer, panels])


def _transpose(lines: np.ndarray, panels: np.ndarray) -> None:
    """Write lines [n, ...] to panels [p, ..., 16], with zeros for lines that aren't there."""
    whole, rest = divmod(len(lines), PANEL)
    full = lines[: whole * PANEL].reshape(whole, PANEL, *lines.shape[1:])
    panels[:whole] = np.moveaxis(full, 1, -1)
    if rest:
        panels[whole, ..., rest:] = 0
        panels[whole, ..., :rest] = np.moveaxis(lines[whole * PANEL :], 0, -1)
