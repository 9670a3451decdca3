"""From a table of names to the weight map of a file format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.tensors import EXPERTS, MATRICES, split_name, tensor_shapes
from fastgen_jax.models.weights.family import Part, TensorPlacement, WeightMap

_PRODUCTS = (*MATRICES, *EXPERTS, "embed_in", "embed_out")
_VECTOR_SUFFIX = re.compile(r"_bias$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where a tensor lies, where more than its name has to be said.

    Attributes:
        name: without ".weight" or ".bias"; {layer} stands for the layer, {piece} for the piece.
        part: which output features of a fused tensor.
        is_transposed: whether a matrix lies as [out, in].
        num_pieces: tensors that make up ours.
        interleaved_head_dim, leading_axes, add: as in ``TensorPlacement``.
        is_whole_name: whether the name has no ending.
    """

    name: str
    part: Part | None = None
    is_transposed: bool = True
    num_pieces: int = 1
    interleaved_head_dim: int = 0
    leading_axes: int = 0
    add: float = 0.0
    is_whole_name: bool = False


Names = Mapping[str, str | Stored]


def weight_map(
    config: ModelConfig,
    names: Names,
    *,
    harmless: str = r"(?!)",
    tied: tuple[str, ...] = (),
    optional_prefix: str = "",
    renamed: Mapping[str, str] | None = None,
) -> WeightMap:
    """The weight map of a model whose tensors are called so.

    Args:
        config: the model.
        names: by our names without a layer. A bias lies beside its matrix or norm unless it has a
            name of its own.
        harmless: a pattern of tensors that may be present and aren't needed.
        tied: what the file may call a head that is the embedding.
        optional_prefix: what the file's names may lack at their beginning.
        renamed: names of other versions of the file, to these.
    """
    placements = [
        placement
        for full_name in tensor_shapes(config)
        for placement in _placements(full_name, names)
    ]
    embedding = next(p.stored_name for p in placements if p.name == "embed")
    return WeightMap(
        placements=tuple(placements),
        harmless=re.compile(harmless),
        duplicates=dict.fromkeys(tied, embedding) if config.tie_word_embeddings else {},
        optional_prefix=optional_prefix,
        renamed={} if renamed is None else renamed,
    )


def _placements(full_name: str, names: Names) -> Iterator[TensorPlacement]:
    name, layer = split_name(full_name)
    is_bias = name not in names and name.endswith("_bias")
    entry = names[_VECTOR_SUFFIX.sub("", name) if is_bias else name]
    stored = Stored(name=entry) if isinstance(entry, str) else entry
    ending = "" if stored.is_whole_name else ".bias" if is_bias else ".weight"
    for piece in range(stored.num_pieces):
        yield TensorPlacement(
            name=full_name,
            stored_name=stored.name.format(layer=layer, piece=piece) + ending,
            transpose=stored.is_transposed and name in _PRODUCTS,
            interleaved_head_dim=stored.interleaved_head_dim,
            part=stored.part,
            piece=piece,
            num_pieces=stored.num_pieces,
            leading_axes=stored.leading_axes,
            add=0.0 if is_bias else stored.add,
        )
