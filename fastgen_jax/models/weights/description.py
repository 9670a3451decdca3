"""What a directory says of a model, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastgen_jax.models.registry import family_of_hf
from fastgen_jax.models.weights.huggingface_directory import read_json
from fastgen_jax.models.weights.packing import Packing, choose_packing


class ModelDescription:
    """A Hugging Face directory of which config.json is read, and no weights need be there.

    ``config`` is the model's shape, ``source`` the path, ``directory`` where a tokenizer may lie.
    Raises CheckpointError and UnsupportedModelError as ``open_checkpoint``.
    """

    format = "dummy"
    tokenizer_fields: Mapping[str, object] | None = None

    def __init__(self, directory: Path) -> None:
        config = read_json(directory / "config.json")
        ends = directory / "generation_config.json"
        generation = read_json(ends) if ends.exists() else {}
        self.config = family_of_hf(config).config_from_hf(config, generation)
        self.source = str(directory)
        self.directory = directory

    def packing(self, *, dtype: str, quantization: str | None) -> Packing:
        """The format of every matrix; see ``choose_packing``."""
        return choose_packing(self.config, dtype=dtype, quantization=quantization)

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> ModelDescription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
