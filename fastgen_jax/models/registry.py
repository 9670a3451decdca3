"""The model families this engine runs, by the names checkpoints give them."""

from __future__ import annotations

from fastgen_jax.errors import UnsupportedModelError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, Shapes
from fastgen_jax.models.weights.llama import llama_family

# To add a family: a function returning its ModelFamily, and a place in this tuple.
FAMILIES: tuple[ModelFamily, ...] = (llama_family(),)


def family_of_hf(config: JsonObject) -> ModelFamily:
    """Return the family of a Hugging Face config.json; UnsupportedModelError if there is none."""
    names = config.get("architectures")
    if isinstance(names, list) and len(names) == 1:
        for family in FAMILIES:
            if family.architecture == names[0]:
                return family
    raise _unsupported("architectures", names, [family.architecture for family in FAMILIES])


def family_of_gguf(metadata: JsonObject) -> ModelFamily:
    """Return the family of GGUF metadata; UnsupportedModelError if there is none."""
    name = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.gguf_architecture == name:
            return family
    supported = [family.gguf_architecture for family in FAMILIES]
    raise _unsupported("general.architecture", name, supported)


def expected_shapes(config: ModelConfig) -> Shapes:
    """Return our name and shape of every weight the model has; linear weights are [in, out]."""
    for family in FAMILIES:
        if family.architecture == config.architecture:
            return family.shapes(config)
    supported = [family.architecture for family in FAMILIES]
    raise _unsupported("architecture", config.architecture, supported)


def _unsupported(field: str, value: object, supported: list[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        "this architecture isn't implemented",
        field=field,
        value=value,
        remedy=f"use a model of {', '.join(supported)}",
    )
