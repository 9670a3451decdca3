"""The normalization that a product can begin with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class RmsNorm:
    """Rows scaled to unit mean square, times a weight (Zhang and Sennrich, 2019); a pytree.

    Attributes:
        weight: [L, I], a row for each layer.
        epsilon: added to the mean square.
    """

    weight: Any
    epsilon: float = field(metadata={"static": True})
