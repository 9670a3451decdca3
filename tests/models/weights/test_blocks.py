"""Blocks of GGUF decoded as the gguf package does, to the last bit."""

from __future__ import annotations

import subprocess
import sys

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastgen_jax.models.weights.blocks import BLOCK_DECODERS
from fastgen_jax.models.weights.gguf import ENCODINGS
from fastgen_jax.models.weights.stored import Encoding


def encoding_of(name: str) -> Encoding:
    return next(encoding for encoding in ENCODINGS.values() if encoding.name == name)


@settings(max_examples=50)
@given(name=st.sampled_from(sorted(BLOCK_DECODERS)), data=st.data())
def test_any_bytes_decode_as_the_gguf_package_does(name: str, data: st.DataObject) -> None:
    """Infinite scales and those that aren't numbers included."""
    encoding = encoding_of(name)
    lines = st.integers(1, 3).map(lambda count: (count, 2 * encoding.group_bytes))
    raw = data.draw(lines.flatmap(lambda shape: arrays.arrays(np.uint8, shape)))
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    seen = encoding.decode(raw)
    assert seen.dtype == np.float32
    assert np.array_equal(seen, expected, equal_nan=True)


def test_other_encodings_are_left_to_the_package() -> None:
    raw = gguf.quantize(
        np.random.default_rng(0).standard_normal((3, 64), np.float32),
        gguf.GGMLQuantizationType.Q5_1,
    )
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType.Q5_1)
    assert np.array_equal(encoding_of("Q5_1").decode(raw), expected)


@pytest.mark.parametrize("name", sorted(BLOCK_DECODERS))
def test_the_package_is_not_imported_for_them(name: str) -> None:
    code = (
        "import sys, numpy as np\n"
        "from fastgen_jax.models.weights.gguf import ENCODINGS\n"
        f"encoding = next(e for e in ENCODINGS.values() if e.name == {name!r})\n"
        "encoding.decode(np.zeros((1, encoding.group_bytes), np.uint8))\n"
        "assert 'gguf' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
