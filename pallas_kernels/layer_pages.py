"""Where a layer's pages are in a pool that holds several layers end to end."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPages:
    """A layer of such a pool: its page p is the pool's page ``layer * pages_per_layer + p``.

    The native kernels do this sum themselves: in a loop over layers, every small kernel of XLA's
    costs as much as waking a thread does.

    Attributes:
        layer: int32 [], may be traced.
        pages_per_layer: pages of each layer.
    """

    layer: Int[Array, ""]
    pages_per_layer: int = field(metadata={"static": True})

    @property
    def first_page(self) -> Int[Array, ""]:
        """The pool's page that is the layer's page 0."""
        return self.layer * jnp.int32(self.pages_per_layer)
