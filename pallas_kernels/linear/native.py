"""The native CPU kernel of the product: multiplies packed weights as they are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.linear.config import LinearNative
from pallas_kernels.linear.format import FormatName
from pallas_kernels.linear.norm import RmsNorm
from pallas_kernels.linear.packed import PackedMatrix
from pallas_kernels.native import native_library, native_obstacle

# The kernel's numbers of the formats; int4 is stored as q4_1 is.
FORMAT_NUMBERS: Mapping[FormatName, int] = MappingProxyType(
    {"float32": 0, "bfloat16": 1, "int8": 2, "q8_0": 3, "q4_0": 4, "q4_1": 5, "int4": 5}
)


def linear_native(
    x: Float[Array, "T I"],
    matrices: tuple[PackedMatrix, ...],
    *,
    layer: Int[Array, ""] | int,
    num_tokens: Int[Array, ""] | int,
    norm: RmsNorm | None = None,
    residual: Float[Array, "T O"] | None = None,
    gated: bool = False,
    out_dtype: str | None = None,
    config: LinearNative,
) -> tuple[Float[Array, "T O"], ...]:
    """The products of the rows in use; see ``api.linear``.

    A row's result is the same to the last bit whatever the shape of x, the number of rows in use
    and the number of threads. Rows that aren't in use are neither read nor written.

    Raises:
        RuntimeError: there are no native kernels here; the message says why.
    """
    if native_library() is None:
        raise RuntimeError(f"no native kernels: {native_obstacle()}; use LinearReference()")
    arguments = [x, jnp.asarray(layer, jnp.int32), jnp.asarray(num_tokens, jnp.int32)]
    if norm is not None:
        arguments.append(norm.weight)
    if residual is not None:
        arguments.append(residual)
    for matrix in matrices:
        arguments += jax.tree.leaves(matrix)
    outputs = [matrix.out_features for matrix in matrices]
    results = tuple(
        jax.ShapeDtypeStruct((x.shape[0], width), out_dtype or x.dtype)
        for width in (outputs[:1] if gated else outputs)
    )
    call = jax.ffi.ffi_call("fastgen_linear", results)
    return tuple(
        call(
            *arguments,
            formats=np.array([FORMAT_NUMBERS[matrix.format] for matrix in matrices], np.int64),
            out_features=np.array(outputs, np.int64),
            has_norm=norm is not None,
            norm_epsilon=np.float32(0.0 if norm is None else norm.epsilon),
            has_residual=residual is not None,
            gated=gated,
            rounds_rows=config.rounds_rows,
        )
    )
