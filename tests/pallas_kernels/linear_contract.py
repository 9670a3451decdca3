"""One class of tests for every implementation of the product, and what its calls are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear import FormatName, PackedMatrix, RmsNorm, pack
from tests.pallas_kernels.unpacked import unpacked_lines

# Sums of hundreds of products in float32, in another order than the check in float64: a share of
# the sum of their magnitudes.
FLOAT32_TOLERANCE = 1e-6
# bfloat16 has 8 bits: rounding what the norm gives, its weight's product, and the result.
BFLOAT16_TOLERANCE = 2**-8

ROWS = (1, 2, 3, 5, 6, 7, 8, 13, 32, 33, 70)
EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One call; ``num_tokens=None`` uses all rows."""

    format: FormatName = "float32"
    rows: int = 5
    num_tokens: int | None = None
    in_features: int = 96
    out_features: tuple[int, ...] = (48,)
    num_layers: int = 3
    layer: int = 1
    dtype: str = "float32"
    out_dtype: str | None = None
    has_norm: bool = False
    has_residual: bool = False
    gated: bool = False

    @property
    def used(self) -> slice:
        """The rows in use."""
        return slice(0, self.rows if self.num_tokens is None else self.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearInputs:
    """The arrays of a call; the weights are checked through what the packed matrices hold."""

    x: jax.Array
    matrices: tuple[PackedMatrix, ...]
    layer: jax.Array
    num_tokens: jax.Array
    norm: RmsNorm | None
    residual: jax.Array | None


def make_inputs(scenario: Scenario, seed: int = 0) -> LinearInputs:
    """Random arrays of a scenario; each layer of a matrix has numbers of another size."""
    rng = np.random.default_rng(seed)
    layers, width, rows = scenario.num_layers, scenario.in_features, scenario.rows

    def matrix(outputs: int) -> PackedMatrix:
        values = rng.standard_normal((layers, outputs, width), np.float32)
        values *= (1 + np.arange(layers, dtype=np.float32))[:, None, None]
        return jax.tree.map(jnp.asarray, pack(values, scenario.format))

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32), scenario.dtype)

    return LinearInputs(
        x=array(rows, width),
        matrices=tuple(matrix(outputs) for outputs in scenario.out_features),
        layer=jnp.int32(scenario.layer),
        num_tokens=jnp.int32(scenario.used.stop),
        norm=RmsNorm(weight=array(layers, width), epsilon=EPSILON) if scenario.has_norm else None,
        residual=array(rows, scenario.out_features[0]) if scenario.has_residual else None,
    )


def check(seen: tuple[np.ndarray, ...], scenario: Scenario, inputs: LinearInputs) -> None:
    """Rows in use equal the float64 product of the weights as they were packed."""
    layer, used = scenario.layer, scenario.used
    x = np.asarray(inputs.x, np.float64)
    if inputs.norm is not None:
        weight = np.asarray(inputs.norm.weight, np.float64)[layer]
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight
    weights = [unpacked_lines(matrix, layer) for matrix in inputs.matrices]
    expected = [x @ lines.T for lines in weights]
    # What a sum can be off by is a share of its terms' magnitudes.
    sizes = [np.abs(x) @ np.abs(lines.T) for lines in weights]
    if scenario.gated:
        first, second = expected
        gate = first / (1 + np.exp(-first))
        expected = [gate * second]
        # The slope of silu is at most 1.1.
        sizes = [1.1 * sizes[0] * np.abs(second) + np.abs(gate) * sizes[1]]
    if inputs.residual is not None:
        residual = np.asarray(inputs.residual, np.float64)
        expected, sizes = [expected[0] + residual], [sizes[0] + np.abs(residual)]
    out_dtype = scenario.out_dtype or scenario.dtype
    # Terms are off by the rounding of the normalized row, the result by its own.
    rounded = scenario.has_norm and scenario.dtype == "bfloat16"
    share = BFLOAT16_TOLERANCE if rounded else FLOAT32_TOLERANCE
    last = BFLOAT16_TOLERANCE if out_dtype == "bfloat16" else FLOAT32_TOLERANCE
    assert len(seen) == len(expected)
    for found, wanted, size in zip(seen, expected, sizes, strict=True):
        assert found.shape == wanted.shape
        difference = np.abs(np.asarray(found, np.float64) - wanted)[used]
        allowed = (share * size + last * np.abs(wanted))[used]
        excess = difference / np.maximum(allowed, 1e-30)
        assert (excess <= 1).all(), f"{excess.max():.3g} times the error that rounding explains"


SCENARIOS = {
    **{
        name: Scenario(format=name)
        for name in ("float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1", "int4")
    },
    **{
        f"bfloat16 rows, {name}": Scenario(format=name, dtype="bfloat16", rows=9)
        for name in ("float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1", "int4")
    },
    "odd sizes, float32": Scenario(in_features=37, out_features=(29,)),
    "odd sizes, bfloat16": Scenario(
        format="bfloat16", dtype="bfloat16", in_features=37, out_features=(29,)
    ),
    "odd sizes, int8": Scenario(format="int8", in_features=37, out_features=(29,)),
    "odd outputs, q4_1": Scenario(format="q4_1", out_features=(7,)),
    "odd outputs, q8_0": Scenario(format="q8_0", out_features=(17,)),
    "one group, q4_0": Scenario(format="q4_0", in_features=32, out_features=(16,)),
    "one in, one out": Scenario(in_features=1, out_features=(1,)),
    "wide": Scenario(format="q4_1", in_features=1536, out_features=(200,), rows=3),
    "wide, many rows": Scenario(
        format="int8", in_features=576, out_features=(200,), rows=70, num_layers=1, layer=0
    ),
    "first layer": Scenario(format="q4_1", layer=0),
    "last layer": Scenario(format="q8_0", layer=2),
    "norm": Scenario(has_norm=True),
    "norm, bfloat16": Scenario(
        format="q4_1", dtype="bfloat16", has_norm=True, rows=8, in_features=576
    ),
    "residual": Scenario(format="int8", has_residual=True),
    "residual, bfloat16": Scenario(format="bfloat16", dtype="bfloat16", has_residual=True),
    "gated": Scenario(format="q8_0", out_features=(33, 33), gated=True),
    "gated, norm, bfloat16": Scenario(
        format="int4", dtype="bfloat16", out_features=(48, 48), gated=True, has_norm=True
    ),
    "three matrices": Scenario(format="bfloat16", out_features=(48, 16, 24), has_norm=True),
    "three matrices, q4_0": Scenario(format="q4_0", out_features=(19, 5, 32), rows=2),
    "norm and residual": Scenario(format="q4_0", has_norm=True, has_residual=True),
    "float32 of bfloat16": Scenario(format="bfloat16", dtype="bfloat16", out_dtype="float32"),
    "bfloat16 of float32": Scenario(format="float32", out_dtype="bfloat16"),
}


class LinearContract:
    """What an implementation must satisfy; subclasses say how it is called."""

    # Whether a row's bits are promised to be the same however many rows the arrays have.
    is_same_in_any_shape: ClassVar[bool] = False

    def multiply(self, scenario: Scenario, inputs: LinearInputs) -> tuple[np.ndarray, ...]:
        """The implementation's results; what it must ignore is in the inputs, not the scenario."""
        raise NotImplementedError

    @pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
    def test_equals_the_dense_product(self, scenario: Scenario) -> None:
        inputs = make_inputs(scenario)
        seen = self.multiply(scenario, inputs)
        check(seen, scenario, inputs)
        out_dtype = scenario.out_dtype or scenario.dtype
        assert all(str(result.dtype) == out_dtype for result in seen)

    @pytest.mark.parametrize("rows", ROWS)
    @pytest.mark.parametrize("format", ["bfloat16", "q4_1", "int8"])
    def test_any_number_of_rows(self, format: FormatName, rows: int) -> None:
        scenario = Scenario(format=format, rows=rows, in_features=64, out_features=(40,))
        inputs = make_inputs(scenario)
        check(self.multiply(scenario, inputs), scenario, inputs)

    def test_formats_may_differ(self) -> None:
        """As where a file keeps one matrix in more bits than the others."""
        scenario = Scenario(format="q4_1", out_features=(32, 32), gated=True)
        inputs = make_inputs(scenario)
        other = make_inputs(replace(scenario, format="q8_0"))
        mixed = replace(inputs, matrices=(inputs.matrices[0], other.matrices[1]))
        check(self.multiply(scenario, mixed), scenario, mixed)

    @pytest.mark.parametrize("format", ["float32", "q4_1"])
    @pytest.mark.parametrize("num_tokens", [0, 1, 6, 33])
    def test_rows_not_in_use_do_not_leak(self, format: FormatName, num_tokens: int) -> None:
        scenario = Scenario(
            format=format, rows=40, num_tokens=num_tokens, has_norm=True, has_residual=True
        )
        inputs = make_inputs(scenario)
        assert inputs.residual is not None
        poisoned = replace(
            inputs,
            x=inputs.x.at[num_tokens:].set(jnp.nan),
            residual=inputs.residual.at[num_tokens:].set(jnp.nan),
        )
        check(self.multiply(scenario, poisoned), scenario, inputs)

    def test_nan_stays_in_its_row(self) -> None:
        scenario = Scenario(format="int8", rows=9)
        inputs = make_inputs(scenario)
        (seen,) = self.multiply(scenario, replace(inputs, x=inputs.x.at[4].set(jnp.nan)))
        assert np.isnan(seen[4]).all()
        clean = [row for row in range(9) if row != 4]
        assert np.isfinite(seen[clean]).all()

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1"])
    def test_a_row_does_not_depend_on_the_others(self, format: FormatName, dtype: str) -> None:
        """To the last bit, whatever the other rows hold and however many are in use."""
        scenario = Scenario(format=format, dtype=dtype, rows=16, has_norm=True, in_features=160)
        inputs = make_inputs(scenario)
        (together,) = self.multiply(scenario, inputs)
        others = make_inputs(scenario, seed=1).x
        for count in (1, 2, 5, 7, 12, 16):
            used = replace(scenario, num_tokens=count)
            row = count - 1
            x = others.at[row].set(inputs.x[row])
            alone = replace(inputs, x=x, num_tokens=jnp.int32(count))
            (seen,) = self.multiply(used, alone)
            np.testing.assert_array_equal(seen[row], together[row], strict=True)

    @pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1"])
    def test_a_row_is_the_same_in_any_shape(self, format: FormatName) -> None:
        if not self.is_same_in_any_shape:
            pytest.skip("not promised: the compiler chooses the order of sums by the shape")
        scenario = Scenario(format=format, rows=70, in_features=160, out_features=(72,))
        inputs = make_inputs(scenario)
        (together,) = self.multiply(scenario, inputs)
        for rows in ROWS:
            fewer = replace(inputs, x=inputs.x[:rows], num_tokens=jnp.int32(rows))
            (seen,) = self.multiply(replace(scenario, rows=rows), fewer)
            np.testing.assert_array_equal(seen, together[:rows], strict=True)
