"""The description of a snapshot: what it holds, and every file that makes it complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.config_data import config_from_data, config_to_data

MANIFEST_FILE = "fastgen_snapshot.json"
TOKENIZER_DIRECTORY = "tokenizer"
GGUF_TOKENIZER_FILE = "gguf_metadata.json"
VERSION = 1
CONVERT_AGAIN = "convert the model again with `fastgen convert`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a snapshot's directory says of itself.

    Attributes:
        model: the decoder's configuration.
        dtype: "float32" or "bfloat16": of the weights, but for those always kept in float32.
        parts: directory of an Orbax checkpoint, below the snapshot's -> our names of its arrays.
        files: every other file's path below the snapshot's directory -> its size in bytes.
        source: what was converted, for people.
    """

    model: ModelConfig
    dtype: str
    parts: Mapping[str, tuple[str, ...]]
    files: Mapping[str, int]
    source: Mapping[str, object] = field(default_factory=dict)


def is_snapshot(directory: Path) -> bool:
    """Whether a directory says that it is a snapshot, complete or not."""
    return (directory / MANIFEST_FILE).is_file()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the description into the snapshot's directory; the last thing to be written."""
    content = {
        "format": "fastgen_jax snapshot",
        "version": VERSION,
        **asdict(manifest),
        "model": config_to_data(manifest.model),
    }
    text = json.dumps(content, indent=1) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Return the description of a snapshot all of whose files are there, in their full size.

    Raises CheckpointError where the description is damaged or of another version, and for a file
    that is missing or cut.
    """
    path = directory / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["version"]
        if version == VERSION:
            manifest = Manifest(
                model=config_from_data(content["model"]),
                dtype=content["dtype"],
                parts={name: tuple(arrays) for name, arrays in content["parts"].items()},
                files=dict(content["files"]),
                source=dict(content["source"]),
            )
            _check_files(directory, manifest)
            return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise damaged(path, f"the snapshot's description can't be read: {error!r}") from error
    raise CheckpointError(
        f"the snapshot {directory} is of a version that this one doesn't read, which is {VERSION}",
        field="version",
        value=version,
        remedy=CONVERT_AGAIN,
    )


def damaged(path: Path, problem: str) -> CheckpointError:
    """Return an error about a file of a snapshot, to be raised by the caller."""
    return CheckpointError(problem, field="file", value=str(path), remedy=CONVERT_AGAIN)


def file_sizes(directory: Path) -> dict[str, int]:
    """Return the size of every file below a directory, by its path there."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}


def _check_files(directory: Path, manifest: Manifest) -> None:
    for name, size in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise damaged(path, "the file of the snapshot is missing")
        if path.stat().st_size != size:
            found = path.stat().st_size
            raise damaged(
                path, f"the file has {found} bytes, the snapshot's description says {size}"
            )
