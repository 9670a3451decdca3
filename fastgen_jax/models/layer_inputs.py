"""What layers get besides their weights: rotation and window, which may differ between them."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.layer import LayerIndex
from fastgen_jax.models.rope import Rotation, rope_tables, stacked_tables

# More keys than any text has, and few enough that a position less this many is an int32.
ALL_KEYS = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """Rotations and windows of a step, by layer.

    Where layers are looped and differ, a layer's number picks from small arrays; where they are
    all the same, or unrolled, nothing is picked.

    Attributes:
        config: whose layers these are.
        rotations: by rope; of unrolled layers, and of looped ones that don't differ.
        tables: cosines and sines of all ropes, and one that turns nothing; None where none is
            picked.
    """

    config: ModelConfig
    rotations: tuple[Rotation, ...]
    tables: Rotation | None

    def rotation(self, layer: LayerIndex) -> Rotation | None:
        """The layer's cosines and sines; None where it doesn't rotate."""
        ropes = [layer.rope for layer in self.config.layers]
        if self.tables is not None and not isinstance(layer, int):
            identity = len(self.config.ropes)
            choice = [identity if rope is None else rope for rope in ropes]
            place = jnp.asarray(np.asarray(choice, np.int32))[layer]
            return self.tables[0][place], self.tables[1][place]
        rope = ropes[layer if isinstance(layer, int) else 0]
        return None if rope is None else self.rotations[rope]

    def window(self, layer: LayerIndex) -> int | Int[Array, ""] | None:
        """Keys that the layer's queries see; None for all."""
        windows = [layer.window for layer in self.config.layers]
        if isinstance(layer, int) or len(set(windows)) == 1:
            return windows[layer if isinstance(layer, int) else 0]
        counts = [ALL_KEYS if window is None else window for window in windows]
        return jnp.asarray(np.asarray(counts, np.int32))[layer]


def layer_inputs(
    config: ModelConfig,
    positions: Int[Array, "T"],
    lengths: Int[Array, "T"] | None,
    *,
    unrolled: bool,
) -> LayerInputs:
    """Computed once a step, for all layers."""
    ropes = {layer.rope for layer in config.layers}
    if unrolled or len(ropes) == 1:
        rotations = tuple(rope_tables(positions, rope, lengths) for rope in config.ropes)
        return LayerInputs(config=config, rotations=rotations, tables=None)
    tables = stacked_tables(positions, config.ropes, lengths, with_identity=None in ropes)
    return LayerInputs(config=config, rotations=(), tables=tables)
