"""What the loader has to know about one family of models."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from fastgen_jax.models.config import ModelConfig

JsonObject = Mapping[str, object]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlacement:
    """Where one tensor of ours lies in a checkpoint, and how its layout there differs.

    ``stored_name`` is the name in the file. ``transpose`` says that the file keeps a linear
    weight as [out, in] where ours is [in, out]. ``interleaved_head_dim`` is the size of the heads
    whose rotary pairs lie next to each other on the file's first axis, (0, 1), (2, 3), …, where
    ours pair i with i + head_dim / 2; 0 where the order is already ours.
    """

    name: str
    stored_name: str
    transpose: bool = False
    interleaved_head_dim: int = 0

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape the tensor must have in the file, given its shape in our layout."""
        return shape[::-1] if self.transpose else shape


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMap:
    """The tensors of a model in one file format.

    ``placements`` lists them in the order they are loaded. ``harmless`` matches tensors that may
    be present and are not needed. ``duplicates`` names stored tensors that may repeat another one
    (name -> the tensor it must equal), as a head does that is tied to the embedding.
    """

    placements: tuple[TensorPlacement, ...]
    harmless: re.Pattern[str]
    duplicates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One architecture: how to read its description and where its weights lie.

    ``config_from_hf`` takes config.json and generation_config.json (empty when there is none);
    ``config_from_gguf`` takes the metadata and the names of the stored tensors. Both raise
    UnsupportedModelError for any field whose mathematics isn't implemented, and CheckpointError
    for a field that is missing or malformed.
    """

    architecture: str
    gguf_architecture: str
    config_from_hf: Callable[[JsonObject, JsonObject], ModelConfig]
    config_from_gguf: Callable[[JsonObject, Collection[str]], ModelConfig]
    shapes: Callable[[ModelConfig], Shapes]
    hf_weights: Callable[[ModelConfig], WeightMap]
    gguf_weights: Callable[[ModelConfig], WeightMap]
