"""The format of every matrix, chosen by what is asked for and by what a file holds."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from fastgen_jax.config import EngineConfig
from fastgen_jax.errors import ConfigError
from fastgen_jax.models.tensors import ATTENTION_MATRICES, MLP_MATRICES, split_name
from fastgen_jax.models.weights.packing import choose_packing, stack_shapes
from pallas_kernels.linear import PackedMatrix

MATRICES = (*ATTENTION_MATRICES, *MLP_MATRICES)
ALL = (*MATRICES, "embed", "head")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_quantized_unasked(dtype, tiny_config) -> None:
    packing = choose_packing(tiny_config, dtype=dtype, quantization=None)
    assert packing.formats == dict.fromkeys(ALL, dtype)
    assert (packing.dtype, packing.note) == (dtype, None)


def test_int8_is_everywhere(tiny_config) -> None:
    packing = choose_packing(tiny_config, dtype="bfloat16", quantization="int8")
    assert packing.formats == dict.fromkeys(ALL, "int8")


def test_int4_leaves_the_embeddings_in_int8(tiny_config) -> None:
    packing = choose_packing(tiny_config, dtype="bfloat16", quantization="int4")
    expected = dict.fromkeys(MATRICES, "int4") | {"embed": "int8", "head": "int8"}
    assert packing.formats == expected
    assert packing.note is None


def test_int4_falls_back_where_groups_do_not_fit(tiny_config) -> None:
    """Only the down projection has the inner width as its input."""
    narrow = replace(tiny_config, intermediate_size=100)
    packing = choose_packing(narrow, dtype="bfloat16", quantization="int4")
    assert packing.formats["down"] == "int8"
    assert packing.formats["gate"] == "int4"
    assert packing.note is not None
    assert packing.note.endswith("groups of 32: down")


def test_a_tied_head_has_no_stack(tiny_config) -> None:
    tied = replace(tiny_config, tie_word_embeddings=True)
    packing = choose_packing(tied, dtype="float32", quantization="int8")
    assert set(packing.formats) == {*MATRICES, "embed"}
    assert "head" not in stack_shapes(tied, "float32", packing.formats)


def test_gguf_keeps_what_is_stored_alike(tiny_config) -> None:
    encodings = {
        **dict.fromkeys(MATRICES, ("Q4_0",)),
        "v": ("Q4_1",),
        "down": ("Q4_0", "Q4_1"),
        "o": ("Q4_0", "F16"),
        "gate": ("F32",),
        "embed": ("Q8_0",),
        "head": ("Q6_K",),
    }
    packing = choose_packing(
        tiny_config, dtype="bfloat16", quantization="gguf", encodings=encodings
    )
    expected = dict.fromkeys(MATRICES, "q4_0") | {
        "v": "q4_1",
        "down": "bfloat16",
        "o": "bfloat16",
        "gate": "bfloat16",
        "embed": "q8_0",
        "head": "bfloat16",
    }
    assert packing.formats == expected
    assert packing.note == (
        "kept in bfloat16, not as stored: o (F16 and Q4_0), down (Q4_0 and Q4_1), head (Q6_K)"
    )


def test_gguf_says_nothing_of_what_was_never_packed(tiny_config) -> None:
    encodings = dict.fromkeys(ALL, ("Q8_0",)) | {"embed": ("BF16",)}
    packing = choose_packing(tiny_config, dtype="float32", quantization="gguf", encodings=encodings)
    assert packing.formats["embed"] == "float32"
    assert packing.note is None


@pytest.mark.parametrize(
    ("encodings", "found"),
    [(dict.fromkeys(ALL, ("Q4_K",)), "Q4_K"), (dict.fromkeys(ALL, ("BF16",)), "BF16"), ({}, "no ")],
)
def test_gguf_without_anything_packed_is_refused(encodings, found, tiny_config) -> None:
    with pytest.raises(ConfigError, match=rf"quantization='gguf'.*{found}.*; use a GGUF") as caught:
        choose_packing(tiny_config, dtype="float32", quantization="gguf", encodings=encodings)
    assert (caught.value.field, caught.value.value) == ("quantization", "gguf")


def test_unknown_words_are_refused(tiny_config) -> None:
    with pytest.raises(ConfigError, match=r"dtype='float16'.*float32 or bfloat16"):
        choose_packing(tiny_config, dtype="float16", quantization=None)
    with pytest.raises(ConfigError, match=r"quantization='int2'.*int8, int4, gguf"):
        choose_packing(tiny_config, dtype="float32", quantization="int2")
    with pytest.raises(ConfigError, match=r"quantization='int2'.*int8, int4, gguf"):
        EngineConfig(quantization="int2")


def test_stacks_have_all_layers(tiny_config) -> None:
    taller = replace(tiny_config, layers=tiny_config.layers[:1] * 3, intermediate_size=512)
    formats = choose_packing(taller, dtype="bfloat16", quantization="int4").formats
    stacks = stack_shapes(taller, "bfloat16", formats)
    assert list(stacks) == [
        *("embed", "attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"),
        *("final_norm", "head"),
    ]
    down, embed = stacks["down"], stacks["embed"]
    assert isinstance(down, PackedMatrix)
    assert (down.format, down.num_layers) == ("int4", 3)
    assert (down.in_features, down.out_features) == (512, 256)
    assert isinstance(embed, PackedMatrix)
    assert (embed.format, embed.num_layers) == ("int8", 1)
    assert (embed.in_features, embed.out_features) == (256, 24)
    for name, shape in (("attn_norm", (3, 256)), ("mlp_norm", (3, 256)), ("final_norm", (256,))):
        norm = stacks[name]
        assert isinstance(norm, jax.ShapeDtypeStruct)
        assert (norm.shape, str(norm.dtype)) == (shape, "bfloat16")


def test_names_of_tensors_lead_to_stacks() -> None:
    assert split_name("embed") == ("embed", 0)
    assert split_name("layers.17.down") == ("down", 17)


def test_shapes_are_numpys_own_types(tiny_config) -> None:
    """So that numpy can allocate them."""
    formats = choose_packing(tiny_config, dtype="bfloat16", quantization=None).formats
    for leaf in jax.tree.leaves(stack_shapes(tiny_config, "bfloat16", formats)):
        assert isinstance(np.dtype(leaf.dtype), np.dtype)
