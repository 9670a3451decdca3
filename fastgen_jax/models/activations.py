"""What a feed-forward does between its products."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fastgen_jax.models.config import Activation, ClampedGate, MlpConfig


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


_FUNCTIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": jax.nn.relu,
}


def activate(
    config: MlpConfig, gate: Float[Array, "*B F"] | None, up: Float[Array, "*B F"]
) -> Float[Array, "*B F"]:
    """What goes into the last product; ``gate`` is None where the feed-forward is plain."""
    if isinstance(config.activation, ClampedGate):
        assert gate is not None, "a clamped gate needs a gated feed-forward"
        limit = config.activation.limit
        gate = jnp.minimum(gate, limit)
        up = jnp.clip(up, -limit, limit)
        return (up + 1) * (gate * jax.nn.sigmoid(config.activation.alpha * gate))
    function = _FUNCTIONS[config.activation]
    return function(up) if gate is None else function(gate) * up
