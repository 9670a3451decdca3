"""The shape of a model by any name that needs no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastgen_jax.errors import CheckpointError, ConfigError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.registry import family_of_hf
from fastgen_jax.models.shapes import SHAPES


def find_shape(model: str | Path) -> ModelConfig:
    """The shape of a built-in name, of a config.json, or of a directory that holds one.

    Raises:
        ConfigError: it is none of these.
        CheckpointError: the file isn't a JSON object.
        UnsupportedModelError: the model needs mathematics that isn't implemented.
    """
    if str(model) in SHAPES:
        return SHAPES[str(model)]
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if str(model) == "" or path.suffix != ".json" or not path.is_file():
        raise ConfigError(
            "there is no such shape or file",
            field="model",
            value=str(model),
            remedy="give a config.json, a directory that holds one, or one of " + ", ".join(SHAPES),
        )
    description = _read_object(path)
    generation = path.with_name("generation_config.json")
    family = family_of_hf(description)
    return family.config_from_hf(
        description, _read_object(generation) if generation.is_file() else {}
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(error), field="config", value=path.name, remedy="give a readable JSON file"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            "holds no JSON object",
            field="config",
            value=path.name,
            remedy="give a model's config.json",
        )
    return value
