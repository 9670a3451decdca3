"""What the loader has to know about one family of models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.weights.stored import StoredTensor

JsonObject = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What of a fused tensor's output features is ours: of every ``period``, ``length`` from
    ``start`` on.

    Query, key and value side by side are parts whose period is all of them; lying together for
    every head, they have a period of three heads; every second feature is a part of period 2.
    """

    period: int
    start: int
    length: int

    def fused(self, count: int) -> int:
        """Return how many features the fused tensor has, given how many are ours."""
        return count // self.length * self.period


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlacement:
    """Where a tensor of ours, or a piece of it, lies in a checkpoint, and how it differs there.

    Attributes:
        name: ours.
        stored_name: in the file.
        transpose: the file keeps a linear weight as [out, in] where ours is [in, out].
        interleaved_head_dim: size of the heads whose rotary pairs lie next to each other on the
            file's first axis, (0, 1), (2, 3), …, where ours pair i with i + head_dim / 2; 0 where
            the order is already ours.
        part: which of the stored output features are ours; None for all.
        piece, num_pieces: our first axis is stored in that many equal pieces, each a tensor of its
            own, as the experts of a layer are; this one is number ``piece``.
        leading_axes: axes of length 1 that the stored shape begins with and ours lacks.
        add: a number to add to every value, as files keep some scales less 1.
    """

    name: str
    stored_name: str
    transpose: bool = False
    interleaved_head_dim: int = 0
    part: Part | None = None
    piece: int = 0
    num_pieces: int = 1
    leading_axes: int = 0
    add: float = 0.0

    def piece_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of this piece, given that of the whole tensor in our layout."""
        if self.num_pieces == 1:
            return shape
        if len(shape) == 3:
            return shape[1:]
        return (shape[0] // self.num_pieces, *shape[1:])

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape the tensor must have in the file, given the whole one in our layout."""
        shape = self.piece_shape(shape)
        if self.part is not None:
            shape = (*shape[:-1], self.part.fused(shape[-1]))
        if self.transpose:
            shape = (*shape[:-2], shape[-1], shape[-2])
        return (1,) * self.leading_axes + shape


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMap:
    """The tensors of a model in one file format.

    ``placements`` lists them in the order they are loaded. ``harmless`` matches tensors that may
    be present and are not needed. ``duplicates`` names stored tensors that may repeat another one
    (name -> the tensor it must equal), as a head does that is tied to the embedding. The file's
    names may lack ``optional_prefix``; ``renamed`` maps names that other versions of the file have
    to those in the placements.
    """

    placements: tuple[TensorPlacement, ...]
    harmless: re.Pattern[str]
    duplicates: Mapping[str, str] = field(default_factory=dict)
    optional_prefix: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One architecture: how to read its description and where its weights lie.

    ``config_from_hf`` takes config.json and generation_config.json (empty when there is none);
    ``config_from_gguf`` takes the metadata and the stored tensors by name. Both raise
    UnsupportedModelError for any field whose mathematics isn't implemented, and CheckpointError
    for a field that is missing or malformed. What concerns GGUF is None where the family has none.
    ``title`` lists the models that people know it by, and ``limits`` what of them can't be done.
    """

    architecture: str
    title: str
    limits: tuple[str, ...] = ()
    gguf_architecture: str | None
    config_from_hf: Callable[[JsonObject, JsonObject], ModelConfig]
    config_from_gguf: Callable[[JsonObject, Mapping[str, StoredTensor]], ModelConfig] | None
    hf_weights: Callable[[ModelConfig], WeightMap]
    gguf_weights: Callable[[ModelConfig], WeightMap] | None
