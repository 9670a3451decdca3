"""Arrays that JAX takes as they are."""

from __future__ import annotations

import math

import numpy as np

_ALIGNMENT = 64  # bytes


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialized array that starts at a multiple of 64 bytes.

    JAX takes such an array on a CPU as it is; any other one it copies.
    """
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)
