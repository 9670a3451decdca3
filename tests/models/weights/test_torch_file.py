"""Legacy PyTorch files: read by torch alone, as weights alone; without torch a way out is named."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.models.weights.torch_file import import_torch
from fastgen_jax.models.weights.window import whole

F32 = np.dtype(np.float32)


class FakeTensor:
    """As much of a torch tensor as is asked for, over a numpy array."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self.dtype = f"torch.{values.dtype.name}"
        self.shape = values.shape

    def detach(self) -> FakeTensor:
        return self

    def contiguous(self) -> FakeTensor:
        return FakeTensor(np.ascontiguousarray(self._values))

    def reshape(self, *shape: int) -> FakeTensor:
        return FakeTensor(self._values.reshape(shape))

    def view(self, kind: type) -> FakeTensor:
        return FakeTensor(self._values.view(kind))

    def numpy(self) -> np.ndarray:
        return self._values


class FakeTorch:
    """Stands for torch: hands out what was put where the file's name says."""

    uint8 = np.uint8

    def __init__(self, files: Mapping[str, Any]) -> None:
        self.files = files
        self.calls: list[dict[str, object]] = []

    def load(self, f: str, *, map_location: str, weights_only: bool, mmap: bool) -> Any:
        self.calls.append(
            {"map_location": map_location, "weights_only": weights_only, "mmap": mmap}
        )
        found = self.files[Path(f).name]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def legacy_directory(hf_directory: Path) -> Path:
    (hf_directory / "model.safetensors").unlink()
    with zipfile.ZipFile(hf_directory / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", b"")
    return hf_directory


def torch_of(arrays: Mapping[str, np.ndarray]) -> FakeTorch:
    return FakeTorch({"pytorch_model.bin": {n: FakeTensor(v) for n, v in arrays.items()}})


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_are_read_in_our_layout(kind, legacy_directory, weights, as_hf) -> None:
    torch = torch_of({name: values.astype(kind) for name, values in as_hf(weights).items()})
    with open_checkpoint(legacy_directory, import_torch=lambda: torch) as checkpoint:
        assert checkpoint.format == "pytorch"
        found = dict(checkpoint.tensors(F32))
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(found[name], values.astype(kind).astype(np.float32))
    assert torch.calls == [{"map_location": "cpu", "weights_only": True, "mmap": True}]


def test_windows_are_cut_out_of_the_mapped_file(legacy_directory, weights, as_hf) -> None:
    torch = torch_of(as_hf(weights))
    with open_checkpoint(legacy_directory, import_torch=lambda: torch) as checkpoint:
        upper = lambda _, shape: (((0, shape[0] // 2), *whole(shape)[1:]),)  # noqa: E731
        for name, window, values in checkpoint.windows(F32, upper):
            np.testing.assert_array_equal(values, weights[name][: window[0][1]])


def test_files_older_than_the_zip_format_are_read_whole(legacy_directory, weights, as_hf) -> None:
    (legacy_directory / "pytorch_model.bin").write_bytes(b"\x80\x02")
    torch = torch_of(as_hf(weights))
    open_checkpoint(legacy_directory, import_torch=lambda: torch).close()
    assert [call["mmap"] for call in torch.calls] == [False]


def test_shards_are_read_by_their_index(legacy_directory, weights, as_hf) -> None:
    (legacy_directory / "pytorch_model.bin").unlink()
    arrays = as_hf(weights)
    shard_of = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(arrays)}
    shards: dict[str, dict[str, FakeTensor]] = {}
    for name, shard in shard_of.items():
        (legacy_directory / shard).write_bytes(b"")
        shards.setdefault(shard, {})[name] = FakeTensor(arrays[name])
    index = legacy_directory / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": shard_of}))
    with open_checkpoint(legacy_directory, import_torch=lambda: FakeTorch(shards)) as checkpoint:
        assert dict(checkpoint.tensors(F32)).keys() == weights.keys()


def test_safetensors_are_preferred_and_need_no_torch(hf_directory) -> None:
    (hf_directory / "pytorch_model.bin").write_bytes(b"")

    def refused() -> FakeTorch:
        raise AssertionError("asked for torch")

    with open_checkpoint(hf_directory, import_torch=refused) as checkpoint:
        assert checkpoint.format == "safetensors"


def test_without_torch_the_way_out_is_named(legacy_directory) -> None:
    def missing() -> FakeTorch:
        raise ImportError("No module named 'torch'")

    match = r"pytorch_model\.bin.*torch, which isn't installed; .*fastgen-jax\[torch\].*safetensors"
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(legacy_directory, import_torch=missing)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (pickle.UnpicklingError("Re-run with weights_only=False"), r"code; use .*safetensors"),
        (RuntimeError("PytorchStreamReader failed"), r"PytorchStreamReader failed"),
        ([1, 2], r"holds a list, not tensors"),
        ({"model.norm.weight": 3}, r"dtype='int'.*model\.norm\.weight"),
        ({"a": FakeTensor(np.zeros(3, np.float64))}, r"dtype='torch\.float64'.*'a'"),
        ({"a": FakeTensor(np.zeros((0, 3), np.float32))}, r"holds nothing"),
        ({}, r"missing"),
    ],
)
def test_what_isnt_weights_is_refused(content, match, legacy_directory) -> None:
    torch = FakeTorch({"pytorch_model.bin": content})
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(legacy_directory, import_torch=lambda: torch)


def test_torch_itself_reads_what_it_wrote(legacy_directory, weights, as_hf) -> None:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(values) for name, values in as_hf(weights).items()}
    torch.save(tensors, legacy_directory / "pytorch_model.bin")
    with open_checkpoint(legacy_directory, import_torch=import_torch) as checkpoint:
        found = dict(checkpoint.tensors(F32))
    for name, values in weights.items():
        np.testing.assert_array_equal(found[name], values)
