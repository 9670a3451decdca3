"""What the decoder asks of one layer's weights, however they are kept, and how products compose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jaxtyping import Array, Float

from fastgen_jax.models.activations import activate
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.norms import normalize

LayerIndex = int | Array  # a Python int when layers are unrolled, a traced scalar when looped


class LayerWeights(Protocol):
    """One layer's tensors, ready to be multiplied with and added."""

    def vector(self, name: str) -> Float[Array, "N"]:
        """A scale, a bias or sinks, by its name without the layer."""
        ...

    def product(
        self,
        names: tuple[str, ...],
        x: Float[Array, "T I"],
        *,
        norm: str | None = None,
        residual: Float[Array, "T O"] | None = None,
        gated: bool = False,
    ) -> tuple[Float[Array, "T O"], ...]:
        """x times each named matrix; one call, so that a kernel can take the rest with it.

        Args:
            names: of ``models.tensors.MATRICES``.
            x: a row a token.
            norm: a vector's name: x is normalized to unit mean square and scaled by it first.
            residual: added to the one product.
            gated: of two products one result, silu(first) * second.
        """
        ...

    def with_experts(
        self, function: Callable[..., Float[Array, "T E"]], *operands: Array
    ) -> Float[Array, "T E"]:
        """``function(arrays, *operands)``; ``arrays`` are the experts' matrices and biases."""
        ...


def normalized(
    config: ModelConfig, weights: LayerWeights, name: str, x: Float[Array, "T E"]
) -> Float[Array, "T E"]:
    """x normalized by the layer's norm of this name."""
    scale = weights.vector(name) if config.norm.has_scale else None
    bias = weights.vector(f"{name}_bias") if config.norm.has_bias else None
    return normalize(x, config.norm, scale, bias)


def products(
    config: ModelConfig,
    weights: LayerWeights,
    names: tuple[str, ...],
    x: Float[Array, "T I"],
    *,
    norm: str | None = None,
    residual: Float[Array, "T O"] | None = None,
) -> tuple[Float[Array, "T O"], ...]:
    """``norm(x) @ W + b`` for each name, and the residual; fused where a kernel can do it."""
    has_bias = any(name in config.biases for name in names)
    if norm is not None and config.norm.kind != "rms":
        x, norm = normalized(config, weights, norm, x), None
    found = weights.product(names, x, norm=norm, residual=None if has_bias else residual)
    if not has_bias:
        return found
    biased = tuple(
        product + weights.vector(f"{name}_bias")[None] if name in config.biases else product
        for name, product in zip(names, found, strict=True)
    )
    return biased if residual is None else (residual + biased[0],)


def inner(
    config: ModelConfig,
    weights: LayerWeights,
    x: Float[Array, "T E"],
    *,
    norm: str | None,
    prefix: str = "",
) -> Float[Array, "T F"]:
    """What goes into the last product of a feed-forward; ``prefix`` begins its matrices' names."""
    names = (f"{prefix}gate", f"{prefix}up") if config.mlp.is_gated else (f"{prefix}up",)
    is_plain_gate = config.mlp.is_gated and config.mlp.activation == "silu"
    is_fused = is_plain_gate and not set(names) & set(config.biases)
    if is_fused and (norm is None or config.norm.kind == "rms"):
        return weights.product(names, x, norm=norm, gated=True)[0]
    found = products(config, weights, names, x, norm=norm)
    gate, up = found if config.mlp.is_gated else (None, found[0])
    return activate(config.mlp, gate, up)
