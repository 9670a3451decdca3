"""Which implementation computes a product: a configuration's class names it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearReference:
    """Plain XLA: the layer is unpacked to float32 and multiplied; right everywhere, never fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearNative:
    """The native CPU kernel, which multiplies packed weights as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearXla:
    """XLA's product in the rows' own dtype, of a layer that is unpacked in every call.

    A rival of the native kernel for many rows, on processors with matrix instructions.
    """


LinearConfig = LinearReference | LinearNative | LinearXla
