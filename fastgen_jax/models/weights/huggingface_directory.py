"""Tensors and descriptions of a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.family import JsonObject
from fastgen_jax.models.weights.safetensors import read_safetensors
from fastgen_jax.models.weights.stored import DOWNLOAD_AGAIN, StoredTensor, WeightFile
from fastgen_jax.models.weights.torch_file import ImportTorch, read_torch_file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a directory keeps its weights.

    Attributes:
        format: its name.
        single: the file that holds all.
        index: the file that says which shard holds what, where there is no single one.
        read: the tensors of one file by name.
    """

    format: str
    single: str
    index: str
    read: Callable[[WeightFile], dict[str, StoredTensor]]

    def is_in(self, directory: Path) -> bool:
        """Whether there is such a file or index."""
        return (directory / self.single).exists() or (directory / self.index).exists()


class HuggingFaceDirectory:
    """An open directory: ``config``, ``generation_config`` and ``tensors`` by stored name.

    Reads model.safetensors, or else the shards of model.safetensors.index.json; where there is
    neither, pytorch_model.bin or the shards of its index, with the torch package. ``format`` says
    which, "safetensors" or "pytorch". Raises CheckpointError naming the file and the tensor.
    ``close`` closes the files.
    """

    def __init__(self, directory: Path, *, import_torch: ImportTorch) -> None:
        layouts = (
            _Layout(
                format="safetensors",
                single="model.safetensors",
                index="model.safetensors.index.json",
                read=read_safetensors,
            ),
            _Layout(
                format="pytorch",
                single="pytorch_model.bin",
                index="pytorch_model.bin.index.json",
                read=partial(read_torch_file, import_torch=import_torch),
            ),
        )
        self.config = read_json(directory / "config.json")
        generation = directory / "generation_config.json"
        self.generation_config = read_json(generation) if generation.exists() else {}
        layout = next((layout for layout in layouts if layout.is_in(directory)), None)
        if layout is None:
            raise CheckpointError(
                f"the directory has neither {layouts[0].single} nor {layouts[0].index}",
                field="directory",
                value=str(directory),
                remedy="download the checkpoint's safetensors files, or its "
                f"{layouts[1].single}, or convert its weights to safetensors",
            )
        self.format = layout.format
        self.tensors: dict[str, StoredTensor] = {}
        opened: list[WeightFile] = []
        try:
            if (directory / layout.single).exists():
                opened.append(WeightFile(directory / layout.single))
                self.tensors = layout.read(opened[0])
            else:
                self._open_shards(directory, layout, opened)
        except BaseException:
            _close(opened)
            raise
        self.files = tuple(opened)

    def close(self) -> None:
        """Close the files; closing twice is harmless."""
        _close(self.files)

    def _open_shards(self, directory: Path, layout: _Layout, opened: list[WeightFile]) -> None:
        index = directory / layout.index
        shard_of = _weight_map(index)
        for shard in sorted(set(shard_of.values())):
            path = directory / shard
            if not path.exists():
                lacking = next(name for name, held_by in shard_of.items() if held_by == shard)
                raise CheckpointError(
                    f"the shard is missing; it holds tensor {lacking!r} among others",
                    field="file",
                    value=str(path),
                    remedy="download it into the directory",
                )
            opened.append(WeightFile(path))
            for name, tensor in layout.read(opened[-1]).items():
                if name in self.tensors:
                    other = self.tensors[name].file.path.name
                    raise tensor.file.damaged(f"tensor {name!r} is in {other} as well")
                self.tensors[name] = tensor
        for name, shard in shard_of.items():
            if name not in self.tensors or self.tensors[name].file.path.name != shard:
                raise CheckpointError(
                    f"the shard lacks tensor {name!r}, which {layout.index} says it holds",
                    field="file",
                    value=str(directory / shard),
                    remedy="download the shard and the index again",
                )


def read_json(path: Path) -> JsonObject:
    """Return the JSON object in a file; CheckpointError if it is missing or not an object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"the file can't be read: {error.strerror}",
            field="file",
            value=str(path),
            remedy="download the checkpoint again",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(path, "not a JSON object")
    return content


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(index, "no weight_map")
    for name, shard in weight_map.items():
        # A shard is a plain file of the directory: a path in the index must lead nowhere else.
        if not isinstance(shard, str) or shard in ("", "..") or Path(shard).name != shard:
            raise _damaged(index, f"tensor {name!r} is in {shard!r}, which isn't a file name")
    return weight_map


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(problem, field="file", value=str(path), remedy=DOWNLOAD_AGAIN)


def _close(files: list[WeightFile] | tuple[WeightFile, ...]) -> None:
    for file in files:
        file.close()
