"""Large arrays that the native kernels read in scattered pieces."""

from __future__ import annotations

import jax
from jax.typing import DTypeLike

from pallas_kernels.native.library import native_library, native_obstacle


def native_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Zeros, in huge pages where the system has them for who asks.

    Linux gives XLA pages of 4 KiB, and a kernel that reads pieces of a few KiB then spends much of
    its time on looking up where they are. Elsewhere these are zeros like any others.

    Raises:
        RuntimeError: there are no native kernels here.
    """
    if native_library() is None:
        raise RuntimeError(f"there are no native kernels here: {native_obstacle()}")
    return jax.ffi.ffi_call("fastgen_zeros", jax.ShapeDtypeStruct(shape, dtype))()
