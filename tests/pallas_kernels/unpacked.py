"""Packed weights read feature by feature in plain Python: slow, and independent of the product."""

from __future__ import annotations

import numpy as np

from pallas_kernels.linear import PackedMatrix


def unpacked_lines(matrix: PackedMatrix, layer: int) -> np.ndarray:
    """One layer's weights [out, in], float64 without any rounding."""
    codes = np.asarray(matrix.codes)[layer]
    lines = np.empty((matrix.out_features, matrix.in_features))
    features = np.arange(matrix.in_features)
    for output in range(matrix.out_features):
        panel, column = divmod(output, 16)
        lines[output] = _codes(matrix.format, codes[panel], column, features)
        for name in ("scales", "mins"):
            stack = getattr(matrix, name)
            if stack is None:
                continue
            numbers = np.asarray(stack, np.float64)[layer, panel]
            by_feature = numbers[column] if numbers.ndim == 1 else numbers[features // 32, column]
            lines[output] = (
                lines[output] * by_feature if name == "scales" else lines[output] + by_feature
            )
    return lines


def term_sizes(matrix: PackedMatrix, layer: int) -> np.ndarray:
    """What a kernel may add up for each weight [out, in]: magnitudes before they cancel.

    A product with four-bit codes adds scale * code and the minimum apart.
    """
    lines = np.abs(unpacked_lines(matrix, layer))
    if matrix.mins is None and matrix.format != "q4_0":
        return lines
    columns = (matrix.num_layers, -1, matrix.in_features // 32, 16)
    stack = matrix.scales if matrix.mins is None else matrix.mins
    shifts = np.asarray(stack, np.float64).reshape(columns)[layer]
    shifts = np.abs(shifts) * (8 if matrix.mins is None else 1)
    by_output = shifts.transpose(0, 2, 1).reshape(-1, columns[2])[: matrix.out_features]
    return lines + 2 * np.repeat(by_output, 32, axis=1)


def _codes(format: str, panel: np.ndarray, column: int, features: np.ndarray) -> np.ndarray:
    """The numbers that one column of a panel codes for its features."""
    if format == "float32":
        return panel[features, column].astype(np.float64)
    if format == "bfloat16":
        return panel[features // 2, column, features % 2].astype(np.float64)
    if format in ("int8", "q8_0"):
        return panel[features // 4, column, features % 4].astype(np.float64)
    words = panel[features // 32, features % 32 // 8, column].astype(np.int64)
    nibbles = (words >> (4 * (features % 8))) & 15
    return (nibbles - (8 if format == "q4_0" else 0)).astype(np.float64)
