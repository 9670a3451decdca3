"""Which implementation computes a product, and how exactly: a configuration's class names it.

All have ``rounds_rows``: rows are rounded to int8 before they are multiplied with quantized
weights, each 16 input features with a scale of their own (``rounding.rounded_rows``). Matrices of
float32 and bfloat16 get the rows as they are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearReference:
    """Plain XLA: the layer is unpacked to float32 and multiplied; right everywhere, never fast."""

    rounds_rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearNative:
    """The native CPU kernel, which multiplies packed weights as they are.

    Rounded rows are multiplied with the codes of the weights in integers, exactly.
    """

    rounds_rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearXla:
    """XLA's product in the rows' own dtype, of a layer that is unpacked in every call.

    A rival of the native kernel for many rows, on processors with matrix instructions. Rounded
    rows become numbers of the rows' dtype again, so bfloat16 rounds them a second time.
    """

    rounds_rows: bool = False


LinearConfig = LinearReference | LinearNative | LinearXla
