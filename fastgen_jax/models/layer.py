"""What the decoder asks of one layer's weights, however they are kept."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Array, Float

LayerIndex = int | Array  # a Python int when layers are unrolled, a traced scalar when looped

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
VECTORS = ("attn_norm", "mlp_norm")


class LayerWeights(Protocol):
    """One layer's matrices and norms, ready to be multiplied with."""

    def product(
        self,
        names: tuple[str, ...],
        x: Float[Array, "T I"],
        *,
        norm: str | None = None,
        residual: Float[Array, "T O"] | None = None,
        gated: bool = False,
    ) -> tuple[Float[Array, "T O"], ...]:
        """x times each named matrix.

        Args:
            names: of ``MATRICES``.
            x: a row a token.
            norm: of ``VECTORS``: x is normalized to unit mean square and scaled by it first.
            residual: added to the one product.
            gated: of two products one result, silu(first) * second.
        """
        ...
