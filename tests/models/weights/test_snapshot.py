"""Snapshots: what is written is what is read, and what is broken is named."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from fastgen_jax.errors import CheckpointError, ConfigError
from fastgen_jax.models.tensors import is_wide, split_name
from fastgen_jax.models.weights import snapshot_writer
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.models.weights.snapshot import Snapshot
from fastgen_jax.models.weights.snapshot_manifest import MANIFEST_FILE
from fastgen_jax.models.weights.snapshot_writer import SnapshotWriter

FAMILIES = Path(__file__).parents[2] / "references" / "families"
F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def write(source: Path, directory: Path, *, dtype: str | None = None, replace: bool = False):
    heard: list[int] = []
    with open_checkpoint(source) as checkpoint:
        writer = SnapshotWriter(checkpoint=checkpoint, dtype=dtype)
        writer.write(directory, replace=replace, on_weight=heard.append)
        assert sum(heard) == writer.num_bytes
    return directory


@pytest.fixture
def snapshot(tmp_path: Path, hf_directory: Path) -> Path:
    return write(hf_directory, tmp_path / "snapshot")


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(np.asarray(found[name]), values, err_msg=name)


@pytest.mark.parametrize("case", ["qwen2", "gemma3", "mixtral", "gpt_oss", "stablelm_parallel"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_weights_of_families_come_back(case: str, dtype: np.dtype, tmp_path: Path) -> None:
    directory = write(FAMILIES / case, tmp_path / "snapshot")
    with open_checkpoint(FAMILIES / case) as source, open_checkpoint(directory) as copy:
        assert isinstance(copy, Snapshot)
        assert copy.config == source.config
        expected = dict(source.tensors(dtype))
        assert_same(dict(copy.tensors(dtype)), expected)
        placed = dict(copy.restore(dtype, lambda _: SingleDeviceSharding(jax.devices()[0])))
        assert all(isinstance(array, jax.Array) for array in placed.values())
        assert_same(placed, expected)


def test_a_snapshot_in_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    directory = write(FAMILIES / "qwen2", tmp_path / "snapshot", dtype="bfloat16")
    with open_checkpoint(FAMILIES / "qwen2") as source, open_checkpoint(directory) as copy:
        expected = dict(source.tensors(BF16))
        assert_same(dict(copy.tensors(BF16)), expected)
        widened = {name: values.astype(np.float32) for name, values in expected.items()}
        assert_same(dict(copy.tensors(F32)), widened)
        assert copy.num_bytes < source.num_bytes


def test_stacks_are_packed_as_those_of_the_source(tmp_path: Path, gguf_path: Path) -> None:
    directory = write(gguf_path, tmp_path / "snapshot")
    with open_checkpoint(gguf_path) as source, open_checkpoint(directory) as copy:
        for dtype, quantization in (("float32", None), ("bfloat16", None), ("float32", "int8")):
            packing = source.packing(dtype=dtype, quantization=quantization)
            assert copy.packing(dtype=dtype, quantization=quantization) == packing
            expected = dict(source.stacks(packing))
            found = dict(copy.stacks(packing))
            assert found.keys() == expected.keys()
            for name, stack in expected.items():
                for one, other in zip(
                    jax.tree.leaves(found[name]), jax.tree.leaves(stack), strict=True
                ):
                    np.testing.assert_array_equal(one, other, err_msg=f"{name} {packing}")


@pytest.mark.parametrize(
    ("case", "dtype"), [("qwen2", "float32"), ("bfloat16", "bfloat16"), ("gemma", "float32")]
)
def test_the_type_that_loses_nothing_is_chosen(
    case: str, dtype: str, tmp_path: Path, weights, hf_directory: Path, as_hf
) -> None:
    from safetensors.numpy import save_file

    source = hf_directory if case == "bfloat16" else FAMILIES / case
    if case == "bfloat16":
        rounded = {name: values.astype(BF16) for name, values in as_hf(weights).items()}
        save_file(rounded, hf_directory / "model.safetensors")
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.lossless_dtype == dtype
        assert SnapshotWriter(checkpoint=checkpoint, dtype=None).dtype == dtype


def test_vectors_that_are_kept_in_float32_are_so_in_a_snapshot(tmp_path: Path) -> None:
    directory = write(FAMILIES / "gemma3", tmp_path / "snapshot", dtype="bfloat16")
    with open_checkpoint(directory) as copy:
        kinds = {
            name: values.dtype == F32
            for name, values in copy.tensors(BF16)
            if is_wide(copy.config, split_name(name)[0])
        }
    assert kinds
    assert all(kinds.values())


def test_layers_of_one_name_lie_together_in_parts(
    tmp_path: Path, hf_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_writer, "PART_BYTES", 4 * 4 * 256)  # four vectors
    directory = write(hf_directory, tmp_path / "snapshot")
    parts = json.loads((directory / MANIFEST_FILE).read_text())["parts"]
    assert ["layers.0.attn_norm", "layers.1.attn_norm"] in parts.values()
    assert ["layers.0.q"] in parts.values()  # larger than a part by itself
    with open_checkpoint(hf_directory) as source, open_checkpoint(directory) as copy:
        assert_same(dict(copy.tensors(F32)), dict(source.tensors(F32)))


def test_a_gguf_tokenizer_comes_along(tmp_path: Path, gguf_path: Path, metadata) -> None:
    directory = write(gguf_path, tmp_path / "snapshot")
    with open_checkpoint(directory) as copy:
        assert copy.directory is None
        assert copy.tokenizer_fields == {
            name: value for name, value in metadata.items() if name.startswith("tokenizer.")
        }


def test_tokenizer_files_come_along_and_no_others(tmp_path: Path, hf_directory: Path) -> None:
    (hf_directory / "tokenizer.json").write_text("{}")
    (hf_directory / "README.md").write_text("much to say")
    directory = write(hf_directory, tmp_path / "snapshot")
    with open_checkpoint(directory) as copy:
        assert copy.tokenizer_fields is None
        assert copy.directory is not None
        assert [path.name for path in copy.directory.iterdir()] == ["tokenizer.json"]


def test_a_snapshot_can_be_converted_again(tmp_path: Path, snapshot: Path) -> None:
    again = write(snapshot, tmp_path / "again", dtype="bfloat16")
    with open_checkpoint(snapshot) as source, open_checkpoint(again) as copy:
        assert_same(dict(copy.tensors(BF16)), dict(source.tensors(BF16)))


def test_orbax_is_heard_only_when_it_fails(
    tmp_path: Path, hf_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = logging.getLogger("absl").level
    with caplog.at_level(logging.INFO):
        directory = write(hf_directory, tmp_path / "snapshot")
        with open_checkpoint(directory) as copy:
            list(copy.tensors(F32))
    assert not [record for record in caplog.records if record.name == "absl"]
    assert logging.getLogger("absl").level == before


def test_an_existing_directory_is_left_alone(tmp_path: Path, hf_directory: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(ConfigError, match=r"directory=.*taken.*exists already; .*--force"):
        write(hf_directory, taken)
    (taken / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"isn't a snapshot.*remove it yourself"):
        write(hf_directory, taken, replace=True)
    assert (taken / "thesis.txt").exists()


def test_a_snapshot_is_replaced_when_asked_for(snapshot: Path, hf_directory: Path) -> None:
    (snapshot / "left over").write_text("")
    write(hf_directory, snapshot, dtype="bfloat16", replace=True)
    with open_checkpoint(snapshot) as copy:
        assert copy.lossless_dtype == "bfloat16"
    assert not (snapshot / "left over").exists()
    assert [path.name for path in snapshot.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("replace", [False, True])
def test_an_interrupted_conversion_leaves_no_trace(
    replace: bool, tmp_path: Path, hf_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "snapshot"
    if replace:
        write(hf_directory, target)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot_writer, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(hf_directory, target, dtype="bfloat16", replace=replace)
    assert [path.name for path in target.parent.iterdir()] == (["snapshot"] if replace else [])
    if replace:
        with open_checkpoint(target) as copy:
            assert copy.lossless_dtype == "float32"


def data_files(snapshot: Path) -> list[Path]:
    return sorted(path for path in (snapshot / "weights").rglob("*") if path.is_file())


def test_every_missing_file_is_noticed(snapshot: Path) -> None:
    for path in data_files(snapshot):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(CheckpointError, match=r"file=.*missing; convert the model again"):
            open_checkpoint(snapshot)
        path.write_bytes(content)
    open_checkpoint(snapshot).close()


def test_every_cut_file_is_noticed(snapshot: Path) -> None:
    for path in data_files(snapshot):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(CheckpointError, match=r"bytes, the snapshot's description says"):
            open_checkpoint(snapshot)
        path.write_bytes(content)


def test_a_damaged_index_of_arrays_is_named(snapshot: Path) -> None:
    for path in data_files(snapshot):
        if path.name in ("_METADATA", "manifest.ocdbt"):
            path.write_bytes(bytes(path.stat().st_size))
    with (
        open_checkpoint(snapshot) as copy,
        pytest.raises(CheckpointError, match=r"can't be read.*convert the model again"),
    ):
        list(copy.tensors(F32))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 99}, r"version=99: .*convert the model again"),
        ({"dtype": "int3"}, r"lists other arrays"),
        ({"parts": {}}, r"lists other arrays"),
        ({"model": {}}, r"description can't be read"),
        ({"files": None}, r"description can't be read"),
    ],
)
def test_a_damaged_description_is_named(change: dict, match: str, snapshot: Path) -> None:
    path = snapshot / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(snapshot)


def test_a_description_of_another_model_is_noticed(snapshot: Path) -> None:
    path = snapshot / MANIFEST_FILE
    content = json.loads(path.read_text())
    content["model"]["intermediate_size"] = 128
    path.write_text(json.dumps(content))
    with open_checkpoint(snapshot) as copy:
        match = r"'layers\.0\.gate' has shape \(256, 256\), not \(256, 128\); convert"
        with pytest.raises(CheckpointError, match=match):
            list(copy.tensors(F32))
        with pytest.raises(CheckpointError, match=match):
            list(copy.restore(F32, lambda _: SingleDeviceSharding(jax.devices()[0])))


def test_orbax_is_imported_only_for_snapshots(hf_directory: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import fastgen_jax.llm;"
        "from fastgen_jax.models.weights.checkpoint import open_checkpoint;"
        f"open_checkpoint(Path({str(hf_directory)!r})).close();"
        "sys.exit(any(name.startswith('orbax') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
