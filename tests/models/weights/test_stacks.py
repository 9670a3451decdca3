"""Packed stacks from checkpoints: every layer in its place, and blocks kept as they are."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest

from fastgen_jax.errors import CheckpointError, ConfigError
from fastgen_jax.models.tensors import ATTENTION_MATRICES, MLP_MATRICES, split_name
from fastgen_jax.models.weights import stacks
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.models.weights.packing import Stack, stack_shapes
from pallas_kernels.linear import PackedMatrix, pack, unpack_layer
from pallas_kernels.linear.native_pack import pack_native
from pallas_kernels.native import native_obstacle
from tests.pallas_kernels.unpacked import unpacked_lines

MATRICES = (*ATTENTION_MATRICES, *MLP_MATRICES)
Q4_0 = gguf.GGMLQuantizationType.Q4_0
Q4_1 = gguf.GGMLQuantizationType.Q4_1
Q8_0 = gguf.GGMLQuantizationType.Q8_0

WAYS = [
    pytest.param(
        "native",
        marks=pytest.mark.skipif(
            native_obstacle() is not None, reason=f"no native kernels: {native_obstacle()}"
        ),
    ),
    "numpy",
]
ASKED = [("float32", None), ("bfloat16", None), ("float32", "int8"), ("bfloat16", "int4")]


@pytest.fixture(autouse=True, params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test holds with the native library and without."""
    if request.param == "numpy":
        monkeypatch.setattr(stacks, "can_pack_native", lambda *_: False)
    return request.param


def load(path: Path, *, dtype: str = "float32", quantization: str | None) -> dict[str, Stack]:
    with open_checkpoint(path) as checkpoint:
        packing = checkpoint.packing(dtype=dtype, quantization=quantization)
        return dict(checkpoint.stacks(packing))


def packed(stack: Stack) -> PackedMatrix:
    assert isinstance(stack, PackedMatrix)
    return stack


def layers_of(name: str, weights: dict[str, np.ndarray]) -> np.ndarray:
    """A matrix of all layers as files hold it, [L, out, in]."""
    if name in MATRICES:
        return np.stack([weights[f"layers.{layer}.{name}"].T for layer in range(2)])
    return weights[name][None]


def assert_equal(seen: Stack, expected: Stack) -> None:
    assert jax.tree.structure(seen) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(seen), jax.tree.leaves(expected), strict=True):
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("many_pieces", [False, True])
@pytest.mark.parametrize(("dtype", "quantization"), ASKED)
@pytest.mark.parametrize("path", ["gguf_path", "hf_directory"])
def test_every_layer_is_in_its_place(
    path,
    dtype,
    quantization,
    many_pieces,
    weights,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if many_pieces:
        monkeypatch.setattr(stacks, "PIECE_VALUES", 1)
    with open_checkpoint(request.getfixturevalue(path)) as checkpoint:
        packing = checkpoint.packing(dtype=dtype, quantization=quantization)
        loaded = list(checkpoint.stacks(packing))
        shapes = stack_shapes(checkpoint.config, dtype, packing.formats)
    assert [name for name, _ in loaded] == list(shapes)
    for name, stack in loaded:
        for seen, shape in zip(jax.tree.leaves(stack), jax.tree.leaves(shapes[name]), strict=True):
            assert (seen.shape, seen.dtype) == (shape.shape, shape.dtype)
            assert seen.ctypes.data % 64 == 0  # jax copies any other array on a CPU
        if name in packing.formats:
            assert_equal(stack, pack(layers_of(name, weights), packing.formats[name]))
    norms = {name: stack for name, stack in loaded if name not in packing.formats}
    kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    for name in ("attn_norm", "mlp_norm"):
        expected = np.stack([weights[f"layers.{layer}.{name}"] for layer in range(2)])
        assert_equal(norms[name], expected.astype(kind))
    assert_equal(norms["final_norm"], weights["final_norm"].astype(kind))


@pytest.fixture
def packed_gguf(tmp_path, weights, metadata, as_gguf, write_gguf) -> Path:
    """A file with every matrix in Q4_1 but o in Q4_0, the embeddings in Q8_0, and a mixed down."""
    arrays = as_gguf(weights)
    for name, values in arrays.items():
        if values.ndim == 1:
            continue
        kind = Q8_0 if "blk" not in name else Q4_0 if "attn_output" in name else Q4_1
        if name == "blk.1.ffn_down.weight":
            kind = Q8_0
        arrays[name] = (gguf.quantize(values, kind), kind)
    return write_gguf(tmp_path / "packed.gguf", metadata, arrays)


def test_blocks_are_kept_as_they_are(packed_gguf) -> None:
    """Against the dense loader, which decodes the same file; q and k change their order alike."""
    with open_checkpoint(packed_gguf) as checkpoint:
        packing = checkpoint.packing(dtype="float32", quantization="gguf")
        loaded = dict(checkpoint.stacks(packing))
        dense = dict(checkpoint.tensors(np.dtype(np.float32)))
    assert packing.formats == dict.fromkeys(MATRICES, "q4_1") | {
        "o": "q4_0",
        "down": "float32",
        "embed": "q8_0",
        "head": "q8_0",
    }
    assert packing.note == "kept in float32, not as stored: down (Q4_1 and Q8_0)"
    for name in packing.formats:
        matrix = packed(loaded[name])
        for layer, lines in enumerate(layers_of(name, dense)):
            assert np.array_equal(unpacked_lines(matrix, layer).astype(np.float32), lines), name


def test_the_library_packs_what_it_can(
    packed_gguf, gguf_path, way, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, str]] = set()

    def observed(lines: np.ndarray, encoding: str, into: PackedMatrix, **rest: Any) -> bool:
        seen.add((encoding, into.format))
        return pack_native(lines, encoding, into, **rest)

    monkeypatch.setattr(stacks, "pack_native", observed)
    load(packed_gguf, quantization="gguf")
    kept = {("Q4_1", "q4_1"), ("Q4_0", "q4_0"), ("Q8_0", "q8_0")}
    widened = {("Q4_1", "float32"), ("Q8_0", "float32")}
    assert seen == (kept | widened if way == "native" else set())
    seen.clear()
    load(packed_gguf, quantization="int8")
    load(gguf_path, quantization=None)  # float32 stays float32
    assert seen == set()
    load(gguf_path, dtype="bfloat16", quantization=None)
    assert seen == ({("F32", "bfloat16")} if way == "native" else set())


def test_packed_files_can_be_quantized_otherwise(packed_gguf) -> None:
    loaded = load(packed_gguf, quantization="int8")
    with open_checkpoint(packed_gguf) as checkpoint:
        dense = dict(checkpoint.tensors(np.dtype(np.float32)))
    for name in ("q", "down", "embed"):
        assert_equal(loaded[name], pack(layers_of(name, dense), "int8"))


def test_a_directory_has_nothing_packed(hf_directory) -> None:
    with pytest.raises(ConfigError, match=r"quantization='gguf': .*this checkpoint has F32"):
        load(hf_directory, quantization="gguf")


@pytest.mark.parametrize("broken", [0, 2])
def test_scales_that_are_not_finite_are_named(
    broken, tmp_path, weights, metadata, as_gguf, write_gguf
) -> None:
    """The scale is at byte 0 of a block of Q4_1, the minimum at byte 2."""
    arrays = as_gguf(weights)
    raw = gguf.quantize(arrays["blk.1.ffn_up.weight"], Q4_1)
    raw[7, 20 + broken : 22 + broken] = (0, 0x7C)  # infinity
    arrays["blk.1.ffn_up.weight"] = (raw, Q4_1)
    arrays["blk.0.ffn_up.weight"] = (gguf.quantize(arrays["blk.0.ffn_up.weight"], Q4_1), Q4_1)
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight.*infinite"):
        load(path, quantization="gguf")
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight.*infinite"):
        load(path, quantization="int8")


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "output.weight", "blk.1.attn_q.weight"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_values_that_are_not_finite_are_named(
    name, quantization, tmp_path, weights, metadata, as_gguf, write_gguf
) -> None:
    arrays = as_gguf(weights)
    arrays[name] = arrays[name].copy()
    arrays[name].flat[5] = np.nan
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' has values that are infinite"):
        load(path, quantization=quantization)


def test_values_beyond_a_formats_scales_are_refused(
    tmp_path, weights, metadata, as_gguf, write_gguf
) -> None:
    arrays = as_gguf(weights)
    arrays["blk.0.attn_k.weight"] = arrays["blk.0.attn_k.weight"] * np.float32(1e9)
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    load(path, quantization="int8")
    with pytest.raises(ConfigError, match=r"quantization='int4': tensor 'blk\.0\.attn_k\.weight'"):
        load(path, quantization="int4")


def test_closed_checkpoint_is_refused(gguf_path) -> None:
    checkpoint = open_checkpoint(gguf_path)
    packing = checkpoint.packing(dtype="float32", quantization=None)
    checkpoint.close()
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.stacks(packing)


def test_leaving_early_ends_the_threads(gguf_path) -> None:
    before = threading.active_count()
    with open_checkpoint(gguf_path) as checkpoint:
        loading = checkpoint.stacks(checkpoint.packing(dtype="float32", quantization=None))
        next(loading)
        del loading
        gc.collect()
    assert threading.active_count() == before


@pytest.mark.real_model
def test_real_model_keeps_its_blocks(smollm2_gguf) -> None:
    """The first and the last layer equal what the dense loader makes of the file."""
    with open_checkpoint(smollm2_gguf) as checkpoint:
        packing = checkpoint.packing(dtype="bfloat16", quantization="gguf")
        loaded = dict(checkpoint.stacks(packing))
        assert packing.formats == dict.fromkeys(MATRICES, "q4_1") | {"embed": "q8_0"}
        assert packing.note is None
        checked = 0
        for name, values in checkpoint.tensors(np.dtype(np.float32)):
            part, layer = split_name(name)
            if part in packing.formats and layer in (0, 29):
                expected = values.T if part == "embed" else values
                seen = np.asarray(unpack_layer(packed(loaded[part]), layer))
                assert np.array_equal(seen, expected), name
                checked += 1
    assert checked == 2 * len(MATRICES) + 1
