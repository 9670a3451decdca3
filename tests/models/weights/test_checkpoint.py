"""Checkpoints: every tensor in its place, in our layout, and nothing overlooked."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fastgen_jax.errors import CheckpointError, ConfigError, UnsupportedModelError
from fastgen_jax.models.tensors import tensor_shapes
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.models.weights.loading import deinterleave

F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)


def test_gguf_loads_in_our_layout(gguf_path, weights, tiny_config):
    with open_checkpoint(gguf_path) as checkpoint:
        assert checkpoint.config == tiny_config
        assert checkpoint.source == str(gguf_path)
        assert checkpoint.directory is None
        assert checkpoint.tokenizer_fields is not None
        tokens = checkpoint.tokenizer_fields["tokenizer.ggml.tokens"]
        assert tokens == [f"<{index}>" for index in range(24)]
        assert checkpoint.num_bytes == 4 * tiny_config.num_parameters
        loaded = list(checkpoint.tensors(F32))
    assert [name for name, _ in loaded] == list(weights)
    for name, values in loaded:
        assert np.array_equal(values, weights[name]), name
        assert values.flags.c_contiguous
        assert values.flags.writeable
        assert values.ctypes.data % 64 == 0  # jax copies any other array on a CPU


def test_hugging_face_loads_in_our_layout(hf_directory, weights, tiny_config):
    with open_checkpoint(hf_directory) as checkpoint:
        assert checkpoint.config == tiny_config
        assert checkpoint.directory == hf_directory
        assert checkpoint.tokenizer_fields is None
        assert checkpoint.num_bytes == 4 * tiny_config.num_parameters
        for name, values in checkpoint.tensors(F32):
            assert np.array_equal(values, weights[name]), name


@pytest.mark.parametrize("path", ["gguf_path", "hf_directory"])
def test_bfloat16_is_rounded_once(path, weights, request: pytest.FixtureRequest):
    with open_checkpoint(request.getfixturevalue(path)) as checkpoint:
        for name, values in checkpoint.tensors(BF16):
            assert values.dtype == BF16
            assert values.flags.c_contiguous
            assert np.array_equal(values, weights[name].astype(BF16)), name


def test_tensors_can_be_read_again(gguf_path, weights):
    with open_checkpoint(gguf_path) as checkpoint:
        for _ in range(2):
            assert {name for name, _ in checkpoint.tensors(F32)} == set(weights)


def test_leaving_early_ends_the_threads(gguf_path):
    before = threading.active_count()
    with open_checkpoint(gguf_path) as checkpoint:
        tensors = checkpoint.tensors(F32)
        next(tensors)
        del tensors
        gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_dtypes_are_refused(dtype, gguf_path):
    with (
        open_checkpoint(gguf_path) as checkpoint,
        pytest.raises(ConfigError, match=r"dtype.*float32 or bfloat16"),
    ):
        checkpoint.tensors(np.dtype(dtype))


def test_closed_checkpoint_is_refused(gguf_path):
    checkpoint = open_checkpoint(gguf_path)
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.tensors(F32)


def test_tied_head_is_absent(tmp_path, weights, metadata, as_gguf, write_gguf, tiny_config):
    arrays = as_gguf(weights)
    del arrays["output.weight"]
    with open_checkpoint(write_gguf(tmp_path / "tied.gguf", metadata, arrays)) as checkpoint:
        assert checkpoint.config == replace(tiny_config, tie_word_embeddings=True)
        assert "head" not in tensor_shapes(checkpoint.config)
        assert "head" not in dict(checkpoint.tensors(F32))


@pytest.mark.parametrize(
    "name", ["token_embd", "output_norm", "blk.0.attn_norm", "blk.1.attn_q", "blk.1.ffn_down"]
)
def test_missing_tensor_is_named(name, tmp_path, weights, metadata, as_gguf, write_gguf):
    arrays = as_gguf(weights)
    del arrays[f"{name}.weight"]
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    with pytest.raises(CheckpointError, match=f"tensor='{name}.weight': .*missing"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("token_embd", (23, 256)),
        ("blk.0.attn_k", (256, 256)),
        ("blk.0.ffn_norm", (1, 256)),
        ("blk.1.ffn_up", (256, 128)),
    ],
)
def test_wrong_shape_is_named(name, shape, tmp_path, weights, metadata, as_gguf, write_gguf):
    arrays = as_gguf(weights) | {f"{name}.weight": np.zeros(shape, np.float32)}
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    with pytest.raises(CheckpointError, match=rf"tensor='{name}.weight': .*shape \({shape[0]}, "):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.2.attn_q.weight", "rope_factors.weight", "what"]
)
def test_unexpected_tensor_is_named(name, tmp_path, weights, metadata, as_gguf, write_gguf):
    arrays = as_gguf(weights) | {name: np.zeros(32, np.float32)}
    path = write_gguf(tmp_path / "model.gguf", metadata, arrays)
    with pytest.raises(CheckpointError, match=f"tensor='{name}': .*no place"):
        open_checkpoint(path)


def test_unknown_architecture_is_refused(tmp_path, metadata, write_gguf):
    path = write_gguf(tmp_path / "model.gguf", metadata, {})
    path.write_bytes(
        path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba")
    )
    with pytest.raises(UnsupportedModelError, match=r"general\.architecture='mamba'.*llama"):
        open_checkpoint(path)


def rotate(values: np.ndarray, position: int, *, neighbours: bool) -> np.ndarray:
    """Turn the pairs of one head [D]: neighbours (2 i, 2 i + 1) or halves (i, i + D / 2)."""
    size = values.size
    angles = position * 10000.0 ** (-np.arange(0, size, 2) / size)
    pairs = values.reshape(-1, 2).T if neighbours else values.reshape(2, -1)
    first = pairs[0] * np.cos(angles) - pairs[1] * np.sin(angles)
    second = pairs[0] * np.sin(angles) + pairs[1] * np.cos(angles)
    turned = np.stack([first, second])
    return (turned.T if neighbours else turned).reshape(-1)


def test_deinterleaving_keeps_attention_scores():
    """GGUF's order with neighbouring pairs and ours with halves give the same q · k."""
    generator = np.random.default_rng(5)
    heads, head_dim, size = 3, 16, 24
    q, k = generator.standard_normal((2, heads * head_dim, size))
    ours_q, ours_k = deinterleave(q, head_dim), deinterleave(k, head_dim)
    x, y = generator.standard_normal((2, size))
    for head in range(heads):
        lines = slice(head * head_dim, (head + 1) * head_dim)
        theirs = rotate(q[lines] @ x, 7, neighbours=True) @ rotate(k[lines] @ y, 3, neighbours=True)
        ours = rotate(ours_q[lines] @ x, 7, neighbours=False) @ rotate(
            ours_k[lines] @ y, 3, neighbours=False
        )
        assert ours == pytest.approx(theirs)
        unturned = rotate(q[lines] @ x, 7, neighbours=False) @ rotate(
            k[lines] @ y, 3, neighbours=False
        )
        assert unturned != pytest.approx(theirs), "the two orders must differ to mean anything"


def test_tiny_reference_checkpoint_opens():
    directory = Path(__file__).parents[2] / "references" / "tiny_llama"
    with open_checkpoint(directory) as checkpoint:
        config = checkpoint.config
        assert (config.hidden_size, config.num_layers, config.head_dim) == (64, 2, 16)
        assert (config.bos_token_id, config.eos_token_ids) == (256, (257,))
        shapes = {name: values.shape for name, values in checkpoint.tensors(F32)}
        assert shapes == tensor_shapes(config)


@pytest.mark.real_model
def test_real_model_loads_as_the_gguf_package_reads_it(smollm2_gguf):
    """Spot checks against gguf's own decoding of the raw bytes; shapes and counts in full."""
    import gguf

    with open_checkpoint(smollm2_gguf) as checkpoint:
        config = checkpoint.config
        assert config.num_parameters == 134_515_008
        assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
        assert (config.ropes[0].theta, config.norm.epsilon) == (100000.0, 1e-5)
        assert (config.tie_word_embeddings, config.eos_token_ids) == (True, (2,))
        assert checkpoint.tokenizer_fields is not None
        merges = checkpoint.tokenizer_fields["tokenizer.ggml.merges"]
        assert isinstance(merges, list)
        assert len(merges) == 48900
        stored = checkpoint._opened.tensors
        shapes = {}
        for name, values in checkpoint.tensors(F32):
            shapes[name] = values.shape
            if name == "embed":
                raw = stored["token_embd.weight"].read_lines(48_000, 2)
                expected = gguf.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)
                assert np.array_equal(values[48_000:48_002], expected)
            if name == "layers.29.k":
                raw = stored["blk.29.attn_k.weight"].read_lines(128, 64)
                lines = gguf.dequantize(raw, gguf.GGMLQuantizationType.Q4_1)
                assert np.array_equal(values[:, 128:160], lines[0::2].T)
                assert np.array_equal(values[:, 160:192], lines[1::2].T)
        assert shapes == tensor_shapes(config)
