"""The public product: arguments checked, then the implementation that the configuration names."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from pallas_kernels.linear.config import LinearConfig, LinearNative
from pallas_kernels.linear.norm import RmsNorm
from pallas_kernels.linear.packed import PackedMatrix
from pallas_kernels.linear.reference import linear_reference

DTYPES = ("float32", "bfloat16")
MAX_MATRICES = 3


def linear(
    x: Float[Array, "T I"],
    matrices: tuple[PackedMatrix, ...],
    *,
    layer: Int[Array, ""] | int,
    num_tokens: Int[Array, ""] | int,
    norm: RmsNorm | None = None,
    residual: Float[Array, "T O"] | None = None,
    gated: bool = False,
    out_dtype: str | None = None,
    config: LinearConfig,
) -> tuple[Float[Array, "T O"], ...]:
    """Rows of x times one layer of each matrix: ``f(norm(x) @ W[layer])``, a result for each.

    Products, residual and gate are computed in float32 and rounded once at the end; what the norm
    gives is rounded to x's dtype, as it is where a norm stands alone. Where ``config`` rounds rows,
    quantized matrices are multiplied with rows of eight bits (``rounding.rounded_rows``). The
    kernel is imported when it is called for, so the reference needs no compiled library.

    Args:
        x: rows, float32 or bfloat16.
        matrices: one to three with I input features and equal layers; formats may differ.
        layer: which layer of the matrices and of the norm's weight; may be traced, must exist.
        num_tokens: rows in use; the results of later rows are undefined.
        norm: x is normalized with it first.
        residual: [T, O], added to the product of a single matrix.
        gated: of two matrices with equal outputs, one result: ``silu(x @ first) * (x @ second)``.
        out_dtype: of the results; None for x's.
        config: names the implementation, and whether rows are rounded for quantized weights.

    Raises:
        ValueError: arguments that don't fit together; the message names them.
    """
    _check_x(x, out_dtype)
    _check_matrices(matrices, x)
    _check_extras(x, matrices, norm, residual, gated)
    if isinstance(config, LinearNative):
        from pallas_kernels.linear.native import linear_native

        return linear_native(
            x,
            matrices,
            layer=layer,
            num_tokens=num_tokens,
            norm=norm,
            residual=residual,
            gated=gated,
            out_dtype=out_dtype,
            config=config,
        )
    return linear_reference(
        x,
        matrices,
        layer=layer,
        num_tokens=num_tokens,
        norm=norm,
        residual=residual,
        gated=gated,
        out_dtype=out_dtype,
        config=config,
    )


def _check_x(x: Array, out_dtype: str | None) -> None:
    if x.ndim != 2 or str(x.dtype) not in DTYPES:
        raise ValueError(f"x {x.dtype}{x.shape}: must be [T, I] of {' or '.join(DTYPES)}")
    if out_dtype is not None and out_dtype not in DTYPES:
        raise ValueError(f"out_dtype={out_dtype!r}: must be {' or '.join(DTYPES)}, or None")


def _check_matrices(matrices: tuple[PackedMatrix, ...], x: Array) -> None:
    if not 1 <= len(matrices) <= MAX_MATRICES:
        raise ValueError(f"matrices: must be 1 to {MAX_MATRICES}, there are {len(matrices)}")
    for index, matrix in enumerate(matrices):
        if matrix.in_features != x.shape[1]:
            raise ValueError(
                f"matrices[{index}] has {matrix.in_features} input features, x {x.shape} "
                f"has rows of {x.shape[1]}: both must be equal"
            )
        if matrix.num_layers != matrices[0].num_layers:
            raise ValueError(
                f"matrices[{index}] has {matrix.num_layers} layers, matrices[0] has "
                f"{matrices[0].num_layers}: all must be equal"
            )
        problem = matrix.problem()
        if problem is not None:
            raise ValueError(f"matrices[{index}]: {problem}")


def _check_extras(
    x: Array,
    matrices: tuple[PackedMatrix, ...],
    norm: RmsNorm | None,
    residual: Array | None,
    gated: bool,
) -> None:
    if norm is not None:
        expected = (matrices[0].num_layers, x.shape[1])
        if norm.weight.shape != expected or str(norm.weight.dtype) not in DTYPES:
            raise ValueError(
                f"norm.weight {norm.weight.dtype}{norm.weight.shape}: must be [L, I] = {expected} "
                f"of {' or '.join(DTYPES)}"
            )
    if gated:
        outputs = [matrix.out_features for matrix in matrices]
        if len(outputs) != 2 or outputs[0] != outputs[1]:
            raise ValueError(
                f"gated=True takes two matrices with equal output features, not {outputs}"
            )
    if residual is None:
        return
    if gated or len(matrices) != 1:
        raise ValueError("residual belongs to the product of one matrix; add it to others outside")
    expected = (x.shape[0], matrices[0].out_features)
    if residual.shape != expected or residual.dtype != x.dtype:
        raise ValueError(
            f"residual {residual.dtype}{residual.shape}: must be {x.dtype}{expected}, "
            "rows of x and output features"
        )
