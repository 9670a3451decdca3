"""Hugging Face directories: one file or shards, three types, and refusal of damaged ones."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fastgen_jax.errors import CheckpointError, UnsupportedModelError
from fastgen_jax.models.weights.checkpoint import open_checkpoint

F32 = np.dtype(np.float32)


def write_shards(directory, arrays, count=3):
    """Replace the single file with shards and an index."""
    (directory / "model.safetensors").unlink()
    weight_map = {}
    names = list(arrays)
    for number in range(count):
        shard = f"model-{number + 1:05}-of-{count:05}.safetensors"
        held = {name: arrays[name] for name in names[number::count]}
        save_file(held, directory / shard)
        weight_map |= dict.fromkeys(held, shard)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_types_are_converted(stored, wanted, hf_directory, weights, as_hf):
    arrays = {name: values.astype(stored) for name, values in as_hf(weights).items()}
    save_file(arrays, hf_directory / "model.safetensors")
    with open_checkpoint(hf_directory) as checkpoint:
        for name, values in checkpoint.tensors(np.dtype(wanted)):
            assert values.dtype == wanted
            assert np.array_equal(values, weights[name].astype(stored).astype(wanted)), name


def test_shards_load(hf_directory, weights, as_hf):
    write_shards(hf_directory, as_hf(weights))
    with open_checkpoint(hf_directory) as checkpoint:
        loaded = dict(checkpoint.tensors(F32))
    assert loaded.keys() == weights.keys()
    assert all(np.array_equal(loaded[name], weights[name]) for name in weights)


def test_missing_shard_is_named(hf_directory, weights, as_hf):
    shard = sorted(set(write_shards(hf_directory, as_hf(weights)).values()))[1]
    (hf_directory / shard).unlink()
    with pytest.raises(CheckpointError, match=rf"{shard}.*missing.*holds tensor.*download"):
        open_checkpoint(hf_directory)


def test_shard_without_its_tensor_is_named(hf_directory, weights, as_hf):
    arrays = as_hf(weights)
    shard = write_shards(hf_directory, arrays)["lm_head.weight"]
    save_file({"model.norm.weight": arrays["model.norm.weight"]}, hf_directory / shard)
    with pytest.raises(CheckpointError, match=r"-of-00003\.safetensors'.*tensor '"):
        open_checkpoint(hf_directory)


def test_tensor_in_two_shards_is_refused(hf_directory, weights, as_hf):
    weight_map = write_shards(hf_directory, as_hf(weights))
    first, second, _ = sorted(set(weight_map.values()))
    shutil.copy(hf_directory / first, hf_directory / second)
    with pytest.raises(CheckpointError, match="as well"):
        open_checkpoint(hf_directory)


@pytest.mark.parametrize("shard", ["../escape.safetensors", "/etc/passwd", 3, "", "..", "."])
def test_index_leads_nowhere_else(shard, hf_directory, weights, as_hf):
    weight_map = write_shards(hf_directory, as_hf(weights)) | {"model.norm.weight": shard}
    index = hf_directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="isn't a file name"):
        open_checkpoint(hf_directory)


@pytest.mark.parametrize("content", ["{}", "[]", "nothing", '{"weight_map": {}}', ""])
def test_malformed_index_is_refused(content, hf_directory):
    (hf_directory / "model.safetensors").unlink()
    (hf_directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(hf_directory)


def test_directory_without_weights_is_refused(hf_directory):
    (hf_directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_checkpoint(hf_directory)


@pytest.mark.parametrize("content", [None, "", "[1]", "{", "[" * 100_000])
def test_unreadable_config_is_refused(content, hf_directory):
    path = hf_directory / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(hf_directory)


@pytest.mark.parametrize("kept", [0, 4, 8, 9, 200, 0.3, 0.9, 0.999999])
def test_cut_file_is_refused(kept, hf_directory):
    path = hf_directory / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*truncated"):
        open_checkpoint(hf_directory)


def test_trailing_bytes_are_refused(hf_directory):
    with open(hf_directory / "model.safetensors", "ab") as file:
        file.write(b"?")
    with pytest.raises(CheckpointError, match="the last tensor ends"):
        open_checkpoint(hf_directory)


def safetensors_bytes(header: object, data: bytes = bytes(64)) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def tensor_entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} | changes


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (safetensors_bytes([1]), "isn't a JSON object"),
        (struct.pack("<Q", 3) + b"{{{" + bytes(9), "isn't valid JSON"),
        (struct.pack("<Q", 2**63) + bytes(99), "truncated in its header"),
        (safetensors_bytes({"t": 3}), "malformed"),
        (safetensors_bytes({"t": tensor_entry(shape=[-1])}), "malformed"),
        (safetensors_bytes({"t": tensor_entry(shape=[True])}), "malformed"),
        (safetensors_bytes({"t": tensor_entry(data_offsets=[0])}), "malformed"),
        (safetensors_bytes({"t": tensor_entry(data_offsets=[0, 60])}), "number of bytes"),
        (safetensors_bytes({"t": tensor_entry(data_offsets=[64, 0])}), "number of bytes"),
        (safetensors_bytes({"t": tensor_entry(dtype="I64")}), "'t' has a type"),
        (safetensors_bytes({"t": tensor_entry(dtype=None)}), "'t' has a type"),
        (safetensors_bytes({"t": tensor_entry(data_offsets=[64, 128])}), "truncated in tensor 't'"),
        (safetensors_bytes({"t": tensor_entry(), "u": tensor_entry()}), "'u' begins at"),
        (safetensors_bytes({"t": tensor_entry(shape=[0], data_offsets=[0, 0])}), "can't hold"),
        (safetensors_bytes({}), "the last tensor ends"),
    ],
)
def test_malformed_file_is_refused(content, problem, hf_directory):
    (hf_directory / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(hf_directory)


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_header_never_crashes(data, hf_directory, weights, as_hf):
    path = hf_directory / "model.safetensors"
    save_file(as_hf(weights), path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, 1500))
    piece = data.draw(st.binary(min_size=1, max_size=6))
    content[position : position + len(piece)] = piece
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError, UnsupportedModelError):
        open_checkpoint(hf_directory).close()


def test_rotary_frequencies_are_harmless(hf_directory, weights, as_hf):
    extra = np.ones(32, np.float32)
    arrays = as_hf(weights) | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": extra,
        "model.rotary_emb.inv_freq": extra,
    }
    save_file(arrays, hf_directory / "model.safetensors")
    with open_checkpoint(hf_directory) as checkpoint:
        assert dict(checkpoint.tensors(F32)).keys() == weights.keys()


@pytest.mark.parametrize("equal", [True, False])
def test_stored_copy_of_a_tied_head(equal, hf_directory, weights, as_hf):
    arrays = as_hf(weights)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + (0 if equal else 1)
    save_file(arrays, hf_directory / "model.safetensors")
    edit_config(hf_directory, tie_word_embeddings=True)
    if not equal:
        with pytest.raises(CheckpointError, match=r"lm_head\.weight.*no place"):
            open_checkpoint(hf_directory)
        return
    with open_checkpoint(hf_directory) as checkpoint:
        assert "head" not in dict(checkpoint.tensors(F32))


def test_bias_is_named(hf_directory, weights, as_hf):
    name = "model.layers.1.self_attn.q_proj.bias"
    save_file(
        as_hf(weights) | {name: np.zeros(256, np.float32)}, hf_directory / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=f"tensor='{name}'"):
        open_checkpoint(hf_directory)


def test_end_of_sequence_ids_come_from_both_files(hf_directory):
    edit_config(hf_directory, eos_token_id=[2, 5])
    (hf_directory / "generation_config.json").write_text('{"eos_token_id": [5, 7], "top_p": 0.9}')
    with open_checkpoint(hf_directory) as checkpoint:
        assert checkpoint.config.eos_token_ids == (2, 5, 7)


def test_unsupported_field_is_refused(hf_directory):
    edit_config(hf_directory, sliding_window=512)
    with pytest.raises(UnsupportedModelError, match="sliding_window=512"):
        open_checkpoint(hf_directory)
