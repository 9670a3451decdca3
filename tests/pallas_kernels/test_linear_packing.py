"""Packing: every weight in its place, GGUF's blocks without loss, and quantization's error."""

from __future__ import annotations

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pallas_kernels.linear import (
    FORMATS,
    FormatName,
    PackedMatrix,
    allocate,
    pack,
    pack_blocks,
    pack_values,
    take_columns,
    unpack,
    unpack_layer,
)
from tests.pallas_kernels.unpacked import unpacked_lines

pytestmark = pytest.mark.usefixtures("jax_strict")

NAMES = tuple(FORMATS)
EXACT = ("float32", "bfloat16")
BLOCKS = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
}
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 3).map(lambda n: 32 * n))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def filled(format: FormatName, layers: int, outputs: int, inputs: int) -> PackedMatrix:
    """A matrix full of ones bits, so that what isn't written shows."""
    shapes = PackedMatrix.abstract(
        format, num_layers=layers, in_features=inputs, out_features=outputs
    )
    return allocate(
        shapes,
        lambda shape, dtype: (
            np.full(int(np.prod(shape)) * dtype.itemsize, 255, np.uint8).view(dtype).reshape(shape)
        ),
    )


@settings(max_examples=20)
@given(
    format=st.sampled_from(EXACT),
    values=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)).flatmap(
        lambda shape: arrays.arrays(
            np.float32, shape, elements=st.floats(-(2.0**99), 2.0**99, width=32)
        )
    ),
)
def test_dense_formats_round_trip(format: FormatName, values: np.ndarray) -> None:
    packed = pack(values, format)
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    if format == "float32":
        expected = values
    for layer, lines in enumerate(expected):
        assert np.array_equal(unpacked_lines(packed, layer), lines)


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize("outputs", [7, 16, 35])
def test_xla_unpacks_what_is_there(format: FormatName, outputs: int) -> None:
    packed = pack(normal(2, outputs, 64), format)
    for layer in range(2):
        expected = unpacked_lines(packed, layer).T
        seen = np.asarray(jax.jit(unpack_layer)(packed, jnp.int32(layer)))
        # float32 has room for a code times a float16 scale, not for a float32 one or a sum.
        exact = format not in ("int8", "q4_1", "int4")
        tolerance = 0 if exact else 2.0**-23 * 8
        np.testing.assert_allclose(seen, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize("outputs", [7, 16, 35])
def test_columns_are_those_of_the_layer(format: FormatName, outputs: int) -> None:
    packed = pack(normal(2, outputs, 64), format)
    ids = np.array([0, outputs - 1, 3, 3])
    seen = jax.jit(take_columns)(packed, jnp.int32(1), jnp.asarray(ids))
    assert np.array_equal(np.asarray(seen), np.asarray(unpack_layer(packed, 1)).T[ids])
    halved = take_columns(packed, 1, jnp.asarray(ids), dtype="bfloat16")
    assert np.array_equal(np.asarray(halved), np.asarray(seen).astype(ml_dtypes.bfloat16))


def test_ids_beyond_the_matrix_take_the_nearest() -> None:
    packed = pack(normal(1, 7, 32), "q4_1")
    seen = np.asarray(take_columns(packed, 0, jnp.array([-3, 99])))
    assert np.array_equal(seen, np.asarray(unpack_layer(packed, 0)).T[[0, 6]])


@settings(max_examples=30)
@given(format=st.sampled_from(sorted(BLOCKS)), sizes=SIZES, seed=st.integers(0, 99))
def test_gguf_blocks_are_kept_bit_for_bit(format: FormatName, sizes, seed: int) -> None:
    layers, outputs, inputs = sizes
    values = normal(layers, outputs, inputs, seed=seed)
    packed = filled(format, layers, outputs, inputs)
    for layer in range(layers):
        raw = gguf.quantize(values[layer], BLOCKS[format])
        pack_blocks(raw, packed, layer=layer)
        expected = gguf.dequantize(raw, BLOCKS[format])
        assert np.array_equal(unpacked_lines(packed, layer).astype(np.float32), expected)


@pytest.mark.parametrize("format", sorted(BLOCKS))
def test_xla_reads_gguf_blocks_bit_for_bit(format: FormatName) -> None:
    packed = filled(format, 2, 19, 96)
    blocks = [gguf.quantize(lines, BLOCKS[format]) for lines in normal(2, 19, 96)]
    for layer, raw in enumerate(blocks):
        pack_blocks(raw, packed, layer=layer)
    expected = [gguf.dequantize(raw, BLOCKS[format]).T for raw in blocks]
    assert np.array_equal(np.asarray(jax.jit(unpack)(packed)), expected)


@settings(max_examples=30)
@given(blocks=arrays.arrays(np.uint8, (5, 2 * 20)))
def test_any_bytes_of_a_block_are_kept(blocks: np.ndarray) -> None:
    """All codes, and scales and minimums that no quantizer would choose."""
    blocks = blocks.reshape(5, 2, 20)
    blocks[..., 1] &= 0xBF  # no float16 that is infinite or not a number
    blocks[..., 3] &= 0xBF
    packed = filled("q4_1", 1, 5, 64)
    pack_blocks(blocks.reshape(5, 40), packed, layer=0)
    expected = gguf.dequantize(blocks.reshape(5, 40), BLOCKS["q4_1"])
    assert np.array_equal(unpacked_lines(packed, 0).astype(np.float32), expected)


@settings(max_examples=20)
@given(sizes=SIZES, seed=st.integers(0, 99), magnitude=st.floats(1e-3, 1e3))
def test_int8_is_off_by_half_a_step(sizes, seed: int, magnitude: float) -> None:
    values = normal(*sizes, seed=seed) * np.float32(magnitude)
    packed = pack(values, "int8")
    for layer, lines in enumerate(values):
        steps = np.abs(lines).max(axis=1, keepdims=True) / 127
        error = np.abs(unpacked_lines(packed, layer) - lines)
        assert (error <= 0.5001 * steps).all()
        assert np.abs(np.asarray(packed.codes)).max() == 127


def plain_four_bits(groups: np.ndarray) -> np.ndarray:
    """What codes between a group's smallest and largest weight make of it."""
    low = groups.min(axis=-1, keepdims=True)
    scales = ((groups.max(axis=-1, keepdims=True) - low) / 15).astype(np.float16)
    lows = low.astype(np.float16).astype(np.float64)
    steps = scales.astype(np.float64)
    return lows + np.clip(np.rint((groups - lows) / np.where(steps, steps, 1)), 0, 15) * steps


@settings(max_examples=20)
@given(
    sizes=SIZES,
    seed=st.integers(0, 99),
    magnitude=st.floats(1e-3, 1e3),
    shift=st.floats(-2, 2),
)
def test_int4_is_no_worse_than_even_steps(sizes, seed: int, magnitude: float, shift: float) -> None:
    values = (normal(*sizes, seed=seed) + np.float32(shift)) * np.float32(magnitude)
    packed = pack(values, "int4")
    for layer, lines in enumerate(values):
        groups = lines.reshape(len(lines), -1, 32).astype(np.float64)
        seen = unpacked_lines(packed, layer).reshape(groups.shape)
        plain = plain_four_bits(groups)
        # The two choose in float32 and in float64, so ties may fall either way.
        squares = ((seen - groups) ** 2).sum(axis=-1)
        assert (squares <= 1.001 * ((plain - groups) ** 2).sum(axis=-1)).all()
        step = (groups.max(axis=-1) - groups.min(axis=-1)) / 15
        largest = np.abs(groups).max(axis=-1)
        assert (np.sqrt(squares / 32) <= 0.5 * step + largest * 2.0**-9).all()


def test_int4_is_better_than_even_steps_on_normal_weights() -> None:
    lines = normal(64, 576) * np.float32(0.02)
    packed = pack(lines[None], "int4")
    groups = lines.reshape(64, -1, 32).astype(np.float64)
    seen = unpacked_lines(packed, 0).reshape(groups.shape)
    error = ((seen - groups) ** 2).mean()
    plain = ((plain_four_bits(groups) - groups) ** 2).mean()
    assert error < 0.93 * plain


@pytest.mark.parametrize("format", ["q8_0", "q4_0", "q4_1"])
def test_dense_weights_in_gguf_formats_are_as_good_as_ggufs(format: FormatName) -> None:
    lines = normal(48, 96)
    theirs = gguf.dequantize(gguf.quantize(lines, BLOCKS[format]), BLOCKS[format])
    ours = unpacked_lines(pack(lines[None], format), 0)
    assert np.square(ours - lines).mean() <= 1.01 * np.square(theirs - lines).mean()


@pytest.mark.parametrize("format", NAMES)
def test_zeros_and_constants_are_exact(format: FormatName) -> None:
    values = np.zeros((1, 20, 64), np.float32)
    values[0, 3] = 0.25
    values[0, 4, 32:] = -8
    seen = unpacked_lines(pack(values, format), 0)
    tolerance = {"int8": 1e-6, "q8_0": 2e-4}.get(format, 0)
    np.testing.assert_allclose(seen, values[0], rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("format", NAMES)
def test_values_may_have_any_float_type(format: FormatName, dtype) -> None:
    values = normal(1, 20, 64).astype(dtype)
    seen = jax.tree.leaves(pack(values, format))
    expected = jax.tree.leaves(pack(values.astype(np.float32), format))
    assert all(np.array_equal(a, b) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize("format", NAMES)
def test_padding_is_zero(format: FormatName) -> None:
    inputs = 64 if FORMATS[format].is_grouped else 37
    packed = filled(format, 2, 35, inputs)
    values = normal(2, 35, inputs) + 9
    for layer in range(2):
        pack_values(values[layer], packed, layer=layer)
    words = packed.codes.view(np.uint32).reshape(2, 3, -1, 16)
    assert not words[:, 2, :, 3:].any()
    for stack in (packed.scales, packed.mins):
        assert stack is None or not stack[:, 2, ..., 3:].any()
    if format == "bfloat16":
        assert not packed.codes[:, :, -1, :, 1:].any()
    if format == "int8":
        assert not packed.codes[:, :, -1, :, 1:].any()


@pytest.mark.parametrize("format", ["bfloat16", "q4_1"])
def test_pieces_make_the_same_as_the_whole(format: FormatName) -> None:
    values = normal(2, 53, 64)
    whole = pack(values, format)
    pieces = filled(format, 2, 53, 64)
    for layer in (1, 0):
        for first in (32, 0, 48, 16):
            pack_values(values[layer, first : first + 16], pieces, layer=layer, first=first)
    for seen, expected in zip(jax.tree.leaves(pieces), jax.tree.leaves(whole), strict=True):
        assert np.array_equal(seen, expected)


class TestRefusals:
    """What can't be packed is refused."""

    def test_groups_must_be_whole(self) -> None:
        with pytest.raises(ValueError, match=r"in_features=40: q4_1 needs .* groups of 32"):
            pack(normal(1, 16, 40), "q4_1")

    @pytest.mark.parametrize("format", ["q8_0", "q4_0", "q4_1", "int4"])
    def test_scales_must_be_expressible(self, format: FormatName) -> None:
        values = normal(1, 16, 64) * np.float32(1e9)
        with pytest.raises(ValueError, match=f"beyond the scales of {format}"):
            pack(values, format)

    def test_lines_must_fill_panels(self) -> None:
        packed = filled("float32", 1, 35, 8)
        lines = normal(35, 8)
        for first, end in ((8, 24), (0, 15), (32, 34)):
            with pytest.raises(ValueError, match="whole panels"):
                pack_values(lines[first:end], packed, layer=0, first=first)
        with pytest.raises(ValueError, match="whole panels"):
            pack_values(normal(48, 8), packed, layer=0)
        with pytest.raises(ValueError, match=r"lines \(16, 9\)"):
            pack_values(normal(16, 9), packed, layer=0)

    def test_blocks_must_belong_to_the_format(self) -> None:
        raw = gguf.quantize(normal(16, 64), BLOCKS["q8_0"])
        with pytest.raises(ValueError, match="format='int8'"):
            pack_blocks(raw, filled("int8", 1, 16, 64), layer=0)
        with pytest.raises(ValueError, match="must hold 96 values"):
            pack_blocks(raw, filled("q8_0", 1, 16, 96), layer=0)


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("float32", 4),
        ("bfloat16", 2),
        ("int8", 1),
        ("q8_0", 34 / 32),
        ("q4_0", 18 / 32),
        ("q4_1", 20 / 32),
        ("int4", 20 / 32),
    ],
)
def test_bytes_per_weight(format: FormatName, expected: float) -> None:
    assert FORMATS[format].bytes_per_weight == expected
    shapes = PackedMatrix.abstract(format, num_layers=2, in_features=64, out_features=32)
    column_scales = 4 * 64 if format == "int8" else 0
    assert shapes.num_bytes == 2 * 64 * 32 * expected + column_scales
