"""The product with packed weights in plain XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.linear.config import LinearReference, LinearXla
from pallas_kernels.linear.norm import RmsNorm
from pallas_kernels.linear.packed import PackedMatrix
from pallas_kernels.linear.rounding import rounded_rows
from pallas_kernels.linear.unpack import unpack_layer


def linear_reference(
    x: Float[Array, "T I"],
    matrices: tuple[PackedMatrix, ...],
    *,
    layer: Int[Array, ""] | int,
    num_tokens: Int[Array, ""] | int,
    norm: RmsNorm | None = None,
    residual: Float[Array, "T O"] | None = None,
    gated: bool = False,
    out_dtype: str | None = None,
    config: LinearReference | LinearXla,
) -> tuple[Float[Array, "T O"], ...]:
    """The products, all T rows of them; see ``api.linear``."""
    del num_tokens  # XLA's shapes are fixed: it computes the other rows too
    rows = x if norm is None else _normalized(x, norm, layer)
    is_exact = isinstance(config, LinearReference)
    dtype = jnp.float32 if is_exact else x.dtype
    rounded = rounded_rows(rows) if config.rounds_rows else rows
    products = [
        jnp.matmul(
            (rounded if matrix.weight_format.is_quantized else rows).astype(dtype),
            unpack_layer(matrix, layer).astype(dtype),
            precision=lax.Precision.HIGHEST if is_exact else None,
            preferred_element_type=jnp.float32,
        )
        for matrix in matrices
    ]
    if gated:
        first, second = products
        products = [jax.nn.silu(first) * second]
    if residual is not None:
        products = [products[0] + residual.astype(jnp.float32)]
    return tuple(product.astype(out_dtype or x.dtype) for product in products)


def _normalized(
    x: Float[Array, "T I"], norm: RmsNorm, layer: Int[Array, ""] | int
) -> Float[Array, "T I"]:
    weight = lax.dynamic_index_in_dim(jnp.asarray(norm.weight), layer, keepdims=False)
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + norm.epsilon)
    return (wide * scale).astype(x.dtype) * weight[None].astype(x.dtype)
