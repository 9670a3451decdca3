"""Native packing writes the bits that numpy's does."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels.linear import FormatName, PackedMatrix, allocate, pack_blocks, pack_values
from pallas_kernels.linear.native_pack import can_pack_native, pack_native
from pallas_kernels.native import native_obstacle

pytestmark = pytest.mark.skipif(
    native_obstacle() is not None, reason=f"no native kernels: {native_obstacle()}"
)

DENSE = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
BLOCKS = {
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
}


def normal(outputs: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((outputs, inputs), np.float32)


def as_bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8)


def filled(format: FormatName, outputs: int, inputs: int) -> PackedMatrix:
    """Two layers full of one bits, so that what isn't written shows."""
    shapes = PackedMatrix.abstract(format, num_layers=2, in_features=inputs, out_features=outputs)
    return allocate(
        shapes,
        lambda shape, dtype: (
            np.full(int(np.prod(shape)) * dtype.itemsize, 255, np.uint8).view(dtype).reshape(shape)
        ),
    )


def assert_same(seen: PackedMatrix, expected: PackedMatrix) -> None:
    for name in ("codes", "scales", "mins"):
        found, wanted = getattr(seen, name), getattr(expected, name)
        assert (found is None) == (wanted is None)
        if found is not None:
            np.testing.assert_array_equal(found.view(np.uint8), wanted.view(np.uint8))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("size", [(48, 64), (37, 33), (5, 1), (100, 7)])
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("encoding", list(DENSE))
def test_dense_values(
    encoding: str, format: FormatName, size: tuple[int, int], num_threads: int
) -> None:
    values = normal(*size).astype(DENSE[encoding])
    values[0] = 0
    seen, expected = filled(format, *size), filled(format, *size)
    pack_values(values, expected, layer=1)
    assert pack_native(as_bytes(values), encoding, seen, layer=1, num_threads=num_threads)
    assert_same(seen, expected)


@pytest.mark.parametrize("size", [(48, 64), (21, 160)])
@pytest.mark.parametrize("encoding", list(BLOCKS))
def test_blocks_keep_their_format(encoding: str, size: tuple[int, int]) -> None:
    blocks = gguf.quantize(normal(*size), BLOCKS[encoding])
    format: FormatName = encoding.lower()  # pyright: ignore[reportAssignmentType]
    seen, expected = filled(format, *size), filled(format, *size)
    pack_blocks(blocks, expected, layer=0)
    assert pack_native(blocks, encoding, seen, layer=0)
    assert_same(seen, expected)


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoding", list(BLOCKS))
def test_blocks_become_dense(encoding: str, format: FormatName) -> None:
    blocks = gguf.quantize(normal(37, 96), BLOCKS[encoding])
    seen, expected = filled(format, 37, 96), filled(format, 37, 96)
    pack_values(gguf.dequantize(blocks, BLOCKS[encoding]), expected, layer=0)
    assert pack_native(blocks, encoding, seen, layer=0)
    assert_same(seen, expected)


def test_lines_in_another_order_and_parts() -> None:
    values = normal(40, 64)
    order = np.random.default_rng(1).permutation(40)
    seen, expected = filled("bfloat16", 40, 64), filled("bfloat16", 40, 64)
    pack_values(values[order], expected, layer=0)
    for first, last in ((0, 16), (16, 40)):
        pack_native(as_bytes(values), "F32", seen, layer=0, first=first, order=order[first:last])
    assert_same(seen, expected)


@pytest.mark.parametrize("encoding", list(DENSE))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_told(encoding: str, bad: float) -> None:
    values = normal(20, 33).astype(DENSE[encoding])
    values[17, 32] = bad
    assert not pack_native(as_bytes(values), encoding, filled("bfloat16", 20, 33), layer=0)


@pytest.mark.parametrize("format", ["own", "float32"])
@pytest.mark.parametrize("encoding", list(BLOCKS))
def test_scales_that_are_not_finite_are_told(encoding: str, format: str) -> None:
    blocks = gguf.quantize(normal(20, 64), BLOCKS[encoding])
    width = blocks.shape[1] // 2
    blocks[17, width : width + 2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    into = filled(encoding.lower() if format == "own" else "float32", 20, 64)  # pyright: ignore[reportArgumentType]
    assert not pack_native(blocks, encoding, into, layer=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoding": "Q5_K"}, "encoding='Q5_K'"),
        ({"encoding": "F16"}, "lines"),
        ({"layer": 2}, "layer=2"),
        ({"first": 8}, "lines 8 to 48 of 40"),
        ({"order": np.arange(20)}, "lines 0 to 20 of 40"),
        ({"order": np.arange(1, 41)}, "order"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], message: str) -> None:
    values = {"encoding": "F32", "layer": 0} | arguments
    with pytest.raises(ValueError, match=message):
        pack_native(as_bytes(normal(40, 64)), into=filled("float32", 40, 64), **values)  # pyright: ignore[reportArgumentType]


def test_conversions_that_there_are() -> None:
    assert can_pack_native("BF16", "int8")
    assert can_pack_native("Q4_1", "q4_1")
    assert not can_pack_native("BF16", "int4")
    assert not can_pack_native("Q4_1", "q4_0")
    assert not can_pack_native("Q6_K", "float32")
