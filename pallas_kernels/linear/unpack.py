"""Packed weights as plain numbers again, in XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.linear.format import GROUP, PANEL, WeightFormat
from pallas_kernels.linear.packed import PackedMatrix


def unpack_layer(matrix: PackedMatrix, layer: Int[Array, ""] | int) -> Float[Array, "I O"]:
    """One layer's weights in float32; the layer may be traced and must exist."""

    def of_layer(stack: Array | None) -> Array | None:
        if stack is None:
            return None
        return lax.dynamic_index_in_dim(jnp.asarray(stack), layer, keepdims=False)

    panels = _dequantized(
        of_layer(matrix.codes),
        of_layer(matrix.scales),
        of_layer(matrix.mins),
        matrix.weight_format,
    )
    dense = panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)
    return dense[: matrix.in_features, : matrix.out_features]


def take_columns(
    matrix: PackedMatrix,
    layer: Int[Array, ""] | int,
    ids: Int[Array, "T"],
    *,
    dtype: str = "float32",
) -> Float[Array, "T in"]:
    """The weights of some output features, as an embedding is looked up; reads no others.

    Ids beyond the matrix take the nearest that there is.
    """
    ids = jnp.clip(ids, 0, matrix.out_features - 1)
    panels, columns = ids // PANEL, ids % PANEL
    column_axis = matrix.codes.ndim - (1 if matrix.codes.shape[-1] == PANEL else 2)

    def of_columns(stack: Array | None, axis: int) -> Array | None:
        if stack is None:
            return None
        between = (slice(None),) * (axis - 2)
        taken = jnp.asarray(stack)[(layer, panels, *between, columns)]
        # The axis of columns stays, with one in it.
        return jnp.expand_dims(taken, axis - 1)

    last = matrix.scales.ndim - 1 if matrix.scales is not None else 0
    lines = _dequantized(
        of_columns(matrix.codes, column_axis),
        of_columns(matrix.scales, last),
        of_columns(matrix.mins, last),
        matrix.weight_format,
    )
    return lines[:, : matrix.in_features, 0].astype(dtype)


def _dequantized(
    codes: Array | None, scales: Array | None, mins: Array | None, weight_format: WeightFormat
) -> Float[Array, "p K C"]:
    """Weights of p panels with C columns; K as long as the codes are."""
    assert codes is not None
    values = _code_values(codes)
    if weight_format.name == "q4_0":
        values = values - 8.0
    if scales is None:
        return values
    if not weight_format.is_grouped:
        return values * scales[:, None]
    grouped = values.reshape(values.shape[0], -1, GROUP, values.shape[2])
    grouped = grouped * scales.astype(jnp.float32)[:, :, None]
    if mins is not None:
        grouped = grouped + mins.astype(jnp.float32)[:, :, None]
    return grouped.reshape(values.shape)


def _code_values(codes: Array) -> Float[Array, "p K C"]:
    """Codes as float32, input features in their order on the second axis."""
    if codes.dtype == jnp.int32:  # [p, G, 4, C], eight codes in each
        shifts = 4 * jnp.arange(8, dtype=jnp.int32)
        nibbles = lax.shift_right_logical(
            *jnp.broadcast_arrays(codes[:, :, :, None], shifts[None, None, None, :, None])
        ) & jnp.int32(15)
        values = nibbles.reshape(codes.shape[0], -1, codes.shape[-1])
    elif codes.ndim == 4:  # [p, words, C, values in a word]
        values = codes.swapaxes(2, 3).reshape(codes.shape[0], -1, codes.shape[2])
    else:
        values = codes
    return values.astype(jnp.float32)


def unpack(matrix: PackedMatrix) -> Float[Array, "L I O"]:
    """All layers' weights in float32."""
    return jax.vmap(lambda layer: unpack_layer(matrix, layer))(jnp.arange(matrix.num_layers))
