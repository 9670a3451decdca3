"""Whether two models are the same, without reading all of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.config_data import config_to_data
from fastgen_jax.replaying.header import LoggedModel

_EDGE_BYTES = 1 << 16
_DIGEST_BYTES = 16
_WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth"}


def logged_model(name: str | Path, path: Path, config: ModelConfig) -> LoggedModel:
    """The model as a log names it: found again in whichever directory somebody asks for it."""
    given = Path(name).expanduser()
    lasting = str(given.resolve()) if given.exists() else str(name)
    return LoggedModel(name=lasting, digest=model_digest(path, config))


def model_digest(path: Path, config: ModelConfig) -> str:
    """32 hexadecimal digits: of the configuration, and of each weight file's size and edges.

    Two fine-tunings of one model differ in it, unless their files begin and end alike.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    digest.update(json.dumps(config_to_data(config), sort_keys=True, default=repr).encode())
    for file in _weight_files(path):
        size = file.stat().st_size
        digest.update(f"{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_EDGE_BYTES))
            stream.seek(max(0, size - _EDGE_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def _weight_files(path: Path) -> list[Path]:
    """Those of a directory in the order of their names; all of its files where none is known."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in files if file.suffix in _WEIGHTS] or files
