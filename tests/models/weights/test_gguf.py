"""GGUF files: every encoding, metadata as plain values, and refusal of damaged files."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen_jax.errors import CheckpointError, UnsupportedModelError
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.models.weights.gguf import ENCODINGS, GgufFile

SHAPE = (48, 512)


def random_bytes(kind: Type, shape: tuple[int, int]) -> np.ndarray:
    """Random encoded lines whose float16 scales are finite and moderate."""
    group_values, group_bytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(int(kind))
    groups = generator.integers(
        0, 256, (shape[0] * shape[1] // group_values, group_bytes), np.uint8
    )
    scales = {Type.Q4_1: (0, 2), Type.Q5_1: (0, 2), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2)}
    for start in (208,) if kind == Type.Q6_K else scales.get(kind, (0,)):
        groups[:, start + 1] &= 0xBB  # exponents below 15: magnitudes below 1
    return groups.reshape(shape[0], -1)


def stored(kind: Type, values: np.ndarray) -> np.ndarray:
    if kind == Type.BF16:
        return values.astype(ml_dtypes.bfloat16).view(np.uint8)
    if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return random_bytes(kind, values.shape)  # gguf can't quantize to these
    return gguf.quantize(values, kind)


def load(path: Path, name: str, dtype: np.dtype) -> np.ndarray:
    with open_checkpoint(path) as checkpoint:
        return dict(checkpoint.tensors(dtype))[name]


@pytest.mark.parametrize("kind", [Type(number) for number in ENCODINGS], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_encoding_decodes_as_gguf_does(
    kind, dtype, tmp_path, weights, metadata, as_gguf, write_gguf
):
    arrays = as_gguf(weights)
    expected = {}
    for name in ("token_embd", "blk.1.ffn_down", "blk.0.attn_v"):
        values = arrays[f"{name}.weight"]
        raw = stored(kind, values)
        arrays[f"{name}.weight"] = (raw, kind)
        expected[name] = gguf.dequantize(raw, kind).reshape(values.shape).astype(dtype)
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    with open_checkpoint(path) as checkpoint:
        loaded = dict(checkpoint.tensors(np.dtype(dtype)))
    assert np.array_equal(loaded["embed"], expected["token_embd"])
    assert np.array_equal(loaded["layers.1.down"], expected["blk.1.ffn_down"].T)
    assert np.array_equal(loaded["layers.0.v"], expected["blk.0.attn_v"].T)
    assert all(array.dtype == dtype and array.flags.c_contiguous for array in loaded.values())


@pytest.mark.parametrize(
    ("kind", "half_a_level"),
    [
        (Type.F32, 0.0),
        (Type.F16, 2**-9),
        (Type.BF16, 2**-6),
        # Half the distance of two levels, for values within ±4.5 in groups of 32, plus the
        # rounding of scales to float16. The 4- and 5-bit types without a minimum clip one end.
        (Type.Q8_0, 4.6 / 127 / 2 * 1.1),
        (Type.Q4_0, 4.6 / 8 * 1.1),
        (Type.Q4_1, 9.2 / 15 / 2 * 1.1),
        (Type.Q5_0, 4.6 / 16 * 1.1),
        (Type.Q5_1, 9.2 / 31 / 2 * 1.1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_quantizing_then_loading_gives_the_values_back(
    kind, half_a_level, tmp_path, weights, metadata, as_gguf, write_gguf
):
    values = np.clip(weights["layers.0.up"], -4.5, 4.5)
    arrays = as_gguf(weights | {"layers.0.up": values})
    name = "blk.0.ffn_up.weight"
    arrays[name] = (stored(kind, arrays[name]), kind)
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    assert np.abs(load(path, "layers.0.up", np.dtype(np.float32)) - values).max() <= half_a_level


def decode_line_by_hand(kind: Type, line: bytes) -> list[float]:
    """The formats' definition, value by value: x = d q + m, or d (q - 8), or d q."""
    head, size = {Type.Q4_1: ("<ee", 20), Type.Q4_0: ("<e", 18), Type.Q8_0: ("<e", 34)}[kind]
    values: list[float] = []
    for start in range(0, len(line), size):
        group = line[start : start + size]
        scales = struct.unpack_from(head, group)
        body = group[struct.calcsize(head) :]
        if kind == Type.Q8_0:
            values += [scales[0] * level for level in struct.unpack("<32b", body)]
            continue
        levels = [byte & 15 for byte in body] + [byte >> 4 for byte in body]
        if kind == Type.Q4_0:
            values += [scales[0] * (level - 8) for level in levels]
        else:
            values += [scales[0] * level + scales[1] for level in levels]
    return values


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q8_0], ids=lambda kind: kind.name)
def test_decoding_follows_the_formats_definition(kind):
    raw = random_bytes(kind, SHAPE)
    expected = [decode_line_by_hand(kind, line.tobytes()) for line in raw]
    decoded = ENCODINGS[int(kind)].decode(raw)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, np.array(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [Type.Q2_K, Type.IQ4_NL, Type.F64], ids=lambda kind: kind.name)
def test_other_encodings_are_refused(kind, tmp_path, weights, metadata, as_gguf, write_gguf):
    arrays = as_gguf(weights)
    shape = arrays["blk.0.ffn_up.weight"].shape
    size = gguf.quant_shape_to_byte_shape(shape, kind)
    arrays["blk.0.ffn_up.weight"] = (np.zeros(size, np.uint8), kind)
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    with pytest.raises(CheckpointError, match=rf"'blk\.0\.ffn_up\.weight'.*{kind.name}.*Q4_1"):
        open_checkpoint(path)


def test_metadata_are_plain_values(gguf_path, metadata):
    file = GgufFile(gguf_path)
    file.close()
    assert file.metadata["general.architecture"] == "llama"
    for name, value in metadata.items():
        read = file.metadata[name]
        assert read == (pytest.approx(value) if isinstance(value, float) else value), name
        assert type(read) is type(value), name


def test_values_that_are_not_finite_are_refused(tmp_path, weights, metadata, as_gguf, write_gguf):
    arrays = as_gguf(weights)
    raw = gguf.quantize(arrays["blk.0.ffn_up.weight"], Type.Q8_0)
    raw[3, 0:2] = np.array([np.inf], np.float16).view(np.uint8)
    arrays["blk.0.ffn_up.weight"] = (raw, Type.Q8_0)
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(CheckpointError, match=r"'blk\.0\.ffn_up\.weight'.*infinite"),
    ):
        list(checkpoint.tensors(np.dtype(np.float32)))


CUTS = [0, 1, 3, 4, 7, 8, 15, 16, 23, 24, 31, 40, 100, 500, 1000, 1500, 2000, 2500, 3000, 4000]


@pytest.mark.parametrize("length", [*CUTS, 0.3, 0.5, 0.9, 0.999, -4, -1])
def test_cut_file_is_refused(length, gguf_path):
    data = gguf_path.read_bytes()
    kept = int(length * len(data)) if isinstance(length, float) else length
    gguf_path.write_bytes(data[:kept])
    with pytest.raises(CheckpointError, match=r"truncated|empty") as caught:
        open_checkpoint(gguf_path)
    assert str(gguf_path) == caught.value.value
    assert "download" in str(caught.value)


def test_file_cut_after_opening_is_refused(gguf_path):
    with open_checkpoint(gguf_path) as checkpoint:
        with open(gguf_path, "r+b") as file:
            file.truncate(gguf_path.stat().st_size // 2)
        with pytest.raises(CheckpointError, match="truncated in tensor"):
            list(checkpoint.tensors(np.dtype(np.float32)))


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_head_never_crashes(data, gguf_path, tmp_path):
    """Any bytes in the head's place give an error of ours, or a file that still makes sense."""
    original = bytearray(gguf_path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, 3200))
        piece = data.draw(st.binary(min_size=1, max_size=9))
        original[position : position + len(piece)] = piece
    path = tmp_path / "damaged.gguf"
    path.write_bytes(original)
    with contextlib.suppress(CheckpointError, UnsupportedModelError):
        open_checkpoint(path).close()


def head(num_tensors: int, fields: bytes = b"", num_fields: int = 0, tensors: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_fields) + fields + tensors


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, *, shape=(32,), kind=0, offset=0) -> bytes:
    counts = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + counts + struct.pack("<IQ", kind, offset)


FIELD = text("general.alignment")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"GGML" + bytes(60), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
        (head(2**62), "truncated"),
        (head(0, num_fields=2**62), "truncated"),
        (head(0, FIELD + struct.pack("<II", 4, 24), 1), "power of two"),
        (head(0, FIELD + struct.pack("<I", 99), 1), "unknown type 99"),
        (head(0, 2 * (FIELD + struct.pack("<II", 4, 32)), 2), "twice"),
        (head(0, text("a") + struct.pack("<IIQ", 9, 8, 2**60), 1), "truncated"),
        (head(0, text("a") + struct.pack("<IIQ", 9, 4, 2**60), 1), "truncated"),
        (head(0, text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(64), 1), "unknown type 9"),
        (head(0, text("a") + struct.pack("<IQ", 8, 1) + b"\xff", 1), "UTF-8"),
        (head(0, text("a") + struct.pack("<IIQQ", 9, 8, 1, 1) + b"\xff", 1), "UTF-8"),
        (head(1, tensors=entry("t", shape=())), "0 axes"),
        (head(1, tensors=entry("t", shape=(1,) * 5)), "5 axes"),
        (head(1, tensors=entry("t", shape=(0,)) + bytes(999)), "can't hold"),
        (head(1, tensors=entry("t", shape=(33,), kind=8) + bytes(999)), "can't hold"),
        (head(1, tensors=entry("t", shape=(2**40, 2**40)) + bytes(999)), "truncated in tensor 't'"),
        (head(1, tensors=entry("t", offset=2**63) + bytes(999)), "truncated in tensor 't'"),
        (head(1, tensors=entry("t", offset=8) + bytes(999)), "multiple of 32"),
        (head(1, tensors=entry("t", kind=77) + bytes(999)), "number 77"),
        (head(2, tensors=2 * entry("t") + bytes(999)), "'t' occurs twice"),
        (head(2, tensors=entry("t") + entry("u", offset=64) + bytes(999)), "overlap"),
    ],
)
def test_malformed_head_is_refused(content, problem, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        GgufFile(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.gguf.*can't be opened"):
        open_checkpoint(tmp_path / "nowhere.gguf")
