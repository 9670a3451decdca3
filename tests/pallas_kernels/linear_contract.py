"""One class of tests for every implementation of the product, and what its calls are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear import FormatName, PackedMatrix, RmsNorm, pack
from pallas_kernels.linear.rounding import ROW_GROUP
from tests.pallas_kernels.unpacked import term_sizes, unpacked_lines

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
    rounds_rows: bool = False

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What a matrix is multiplied with, in float64; numbers may be off by ``slack``."""

    values: np.ndarray
    slack: np.ndarray


def _rounded(x: np.ndarray, share: float | None) -> _Rows:
    """Rows as codes from -127 to 127 times a step for each 16 features.

    ``share``: by how much of themselves the numbers may be off that an implementation rounds; those
    that lie as close to a tie may get the other code. None: they are exact.
    """
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % ROW_GROUP)))
    groups = padded.reshape(len(x), -1, ROW_GROUP).astype(np.float32)
    steps = np.abs(groups).max(-1, keepdims=True) * np.float32(1 / 127)
    steps[steps < np.finfo(np.float32).tiny] = 0
    quotients = groups * np.divide(1, steps, out=np.zeros_like(steps), where=steps > 0)
    values = (np.rint(quotients) * steps.astype(np.float64)).reshape(padded.shape)
    slack = np.zeros_like(values)
    if share is not None:
        from_tie = np.abs(quotients - np.floor(quotients) - 0.5)
        near = from_tie <= 2 * share * np.abs(quotients)
        slack = np.where(near, steps, 0).astype(np.float64).reshape(padded.shape)
    return _Rows(values=values[:, : x.shape[1]], slack=slack[:, : x.shape[1]])


def _rows(
    x: np.ndarray, matrix: PackedMatrix, scenario: Scenario, row_share: float | None
) -> _Rows:
    if scenario.rounds_rows and matrix.weight_format.is_quantized:
        return _rounded(x, row_share)
    return _Rows(values=x, slack=np.zeros_like(x))


def check(seen: tuple[np.ndarray, ...], scenario: Scenario, inputs: LinearInputs) -> None:
    """Rows in use equal the float64 product of the weights as they were packed.

    Where rows are to be rounded to int8, they are rounded here as well: what is left to differ is
    the order of sums, as without rounding, and the code of a number that is nearly at a tie.
    """
    layer, used = scenario.layer, scenario.used
    x = np.asarray(inputs.x, np.float64)
    # Terms are off by the rounding of the normalized row, the result by its own.
    rounded = scenario.has_norm and scenario.dtype == "bfloat16"
    share = BFLOAT16_TOLERANCE if rounded else FLOAT32_TOLERANCE
    if inputs.norm is not None:
        weight = np.asarray(inputs.norm.weight, np.float64)[layer]
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight
    weights = [unpacked_lines(matrix, layer) for matrix in inputs.matrices]
    row_share = None if inputs.norm is None else share
    rows = [_rows(x, matrix, scenario, row_share) for matrix in inputs.matrices]
    expected = [one.values @ lines.T for one, lines in zip(rows, weights, strict=True)]
    # What a sum can be off by is a share of its terms' magnitudes.
    sizes = [
        (np.abs(one.values) + one.slack / share) @ term_sizes(matrix, layer).T
        for one, matrix in zip(rows, inputs.matrices, strict=True)
    ]
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
    last = BFLOAT16_TOLERANCE if out_dtype == "bfloat16" else FLOAT32_TOLERANCE
    assert len(seen) == len(expected)
    for found, wanted, size in zip(seen, expected, sizes, strict=True):
        assert found.shape == wanted.shape
        difference = np.abs(np.asarray(found, np.float64) - wanted)[used]
        allowed = (share * size + last * np.abs(wanted))[used]
        excess = difference / np.maximum(allowed, 1e-30)
        assert (excess <= 1).all(), f"{excess.max():.3g} times the error that rounding explains"


QUANTIZED: tuple[FormatName, ...] = ("int8", "q8_0", "q4_0", "q4_1", "int4")

SCENARIOS = {
    **{
        name: Scenario(format=name)
        for name in ("float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1", "int4")
    },
    **{
        f"bfloat16 rows, {name}": Scenario(format=name, dtype="bfloat16", rows=9)
        for name in ("float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1", "int4")
    },
    **{
        f"rounded, {name}": Scenario(format=name, rounds_rows=True)
        for name in ("float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1", "int4")
    },
    **{
        f"rounded bfloat16 rows, {name}": Scenario(
            format=name, dtype="bfloat16", rows=9, out_dtype="float32", rounds_rows=True
        )
        for name in QUANTIZED
    },
    "rounded, odd sizes, int8": Scenario(
        format="int8", in_features=37, out_features=(29,), rounds_rows=True
    ),
    "rounded, one in, one out": Scenario(
        format="int8", in_features=1, out_features=(1,), rounds_rows=True
    ),
    "rounded, odd outputs, q4_1": Scenario(format="q4_1", out_features=(7,), rounds_rows=True),
    "rounded, odd outputs, q8_0": Scenario(format="q8_0", out_features=(17,), rounds_rows=True),
    "rounded, wide": Scenario(
        format="q4_1", in_features=1536, out_features=(200,), rows=3, rounds_rows=True
    ),
    "rounded, wide, many rows": Scenario(
        format="q8_0", in_features=1120, out_features=(200,), rows=70, layer=0, rounds_rows=True
    ),
    "rounded, norm and residual": Scenario(
        format="q4_0", has_norm=True, has_residual=True, rounds_rows=True
    ),
    "rounded, gated, norm, bfloat16": Scenario(
        format="int4",
        dtype="bfloat16",
        out_features=(40, 40),
        gated=True,
        has_norm=True,
        rounds_rows=True,
    ),
    "rounded, three matrices": Scenario(
        format="q8_0", out_features=(48, 7, 24), has_norm=True, rounds_rows=True
    ),
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


# Every format with the rows as they are; quantized ones also with rounded rows.
KINDS: tuple[tuple[FormatName, bool], ...] = (
    *((name, False) for name in ("float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1")),
    *((name, True) for name in QUANTIZED),
)


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
    @pytest.mark.parametrize("rounds_rows", [False, True])
    @pytest.mark.parametrize("format", ["bfloat16", "q4_1", "int8"])
    def test_any_number_of_rows(self, format: FormatName, rows: int, rounds_rows: bool) -> None:
        scenario = Scenario(
            format=format,
            rows=rows,
            in_features=64,
            out_features=(40,),
            rounds_rows=rounds_rows,
        )
        inputs = make_inputs(scenario)
        check(self.multiply(scenario, inputs), scenario, inputs)

    @pytest.mark.parametrize("rounds_rows", [False, True])
    @pytest.mark.parametrize("gated", [False, True])
    @pytest.mark.parametrize("other", ["q8_0", "bfloat16"])
    def test_formats_may_differ(self, other: FormatName, gated: bool, rounds_rows: bool) -> None:
        """As where a file keeps one matrix in more bits than the others."""
        scenario = Scenario(
            format="q4_1",
            rows=7,
            out_features=(38, 38),
            gated=gated,
            has_norm=True,
            rounds_rows=rounds_rows,
        )
        inputs = make_inputs(scenario)
        others = make_inputs(replace(scenario, format=other))
        for matrices in (
            (inputs.matrices[0], others.matrices[1]),
            (others.matrices[0], inputs.matrices[1]),
        ):
            mixed = replace(inputs, matrices=matrices)
            check(self.multiply(scenario, mixed), scenario, mixed)

    @pytest.mark.parametrize("format", ["int8", "q8_0"])
    def test_the_lowest_code(self, format: FormatName) -> None:
        """-128 is in no file that was made with care, but a byte can hold it."""
        scenario = Scenario(format=format, rounds_rows=True, rows=6, in_features=64)
        inputs = make_inputs(scenario)
        (matrix,) = inputs.matrices
        lowest = replace(matrix, codes=jnp.full_like(matrix.codes, -128))
        extreme = replace(inputs, matrices=(lowest,), x=jnp.sign(inputs.x) * 3)
        check(self.multiply(scenario, extreme), scenario, extreme)
        largest = replace(extreme, x=jnp.full_like(inputs.x, -5.0))
        check(self.multiply(scenario, largest), scenario, largest)

    @pytest.mark.parametrize("format", QUANTIZED)
    def test_the_largest_sums(self, format: FormatName) -> None:
        """Every code and every number at its limit, so that sums of few bits would overflow."""
        scenario = Scenario(format=format, rounds_rows=True, rows=6, in_features=64)
        inputs = make_inputs(scenario)
        (matrix,) = inputs.matrices
        code = -1 if matrix.codes.dtype == jnp.int32 else 127  # of four bits: 15 in each
        full = replace(matrix, codes=jnp.full_like(matrix.codes, code))
        for number in (1.0, -1.0):
            limit = replace(inputs, matrices=(full,), x=jnp.full_like(inputs.x, number))
            check(self.multiply(scenario, limit), scenario, limit)

    @pytest.mark.parametrize("format", QUANTIZED)
    def test_rounding_is_by_groups(self, format: FormatName) -> None:
        """Groups of zeros, groups of numbers of their own size, and one that hides the others."""
        scenario = Scenario(format=format, rounds_rows=True, rows=6, in_features=128)
        inputs = make_inputs(scenario)
        x = inputs.x.at[:, 16:48].multiply(1e-4).at[:, 64:96].set(0.0).at[2].set(0.0)
        x = x.at[4, 100].set(1e6).at[5].multiply(1e-37)
        grouped = replace(inputs, x=x)
        check(self.multiply(scenario, grouped), scenario, grouped)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("format", QUANTIZED)
    def test_what_is_not_finite_spoils_a_rounded_row(self, format: FormatName, bad: float) -> None:
        scenario = Scenario(format=format, rows=9, rounds_rows=True)
        inputs = make_inputs(scenario)
        (seen,) = self.multiply(scenario, replace(inputs, x=inputs.x.at[4, 40].set(bad)))
        assert np.isnan(seen[4]).all()
        (clean,) = self.multiply(scenario, inputs)
        others = [row for row in range(9) if row != 4]
        np.testing.assert_array_equal(seen[others], clean[others], strict=True)

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
    @pytest.mark.parametrize(("format", "rounds_rows"), KINDS)
    def test_a_row_does_not_depend_on_the_others(
        self, format: FormatName, rounds_rows: bool, dtype: str
    ) -> None:
        """To the last bit, whatever the other rows hold and however many are in use."""
        scenario = Scenario(
            format=format,
            dtype=dtype,
            rows=16,
            has_norm=True,
            in_features=160,
            rounds_rows=rounds_rows,
        )
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

    @pytest.mark.parametrize(("format", "rounds_rows"), KINDS)
    def test_a_row_is_the_same_in_any_shape(self, format: FormatName, rounds_rows: bool) -> None:
        if not self.is_same_in_any_shape:
            pytest.skip("not promised: the compiler chooses the order of sums by the shape")
        scenario = Scenario(
            format=format,
            rows=70,
            in_features=608,
            out_features=(72,),
            rounds_rows=rounds_rows,
        )
        inputs = make_inputs(scenario)
        (together,) = self.multiply(scenario, inputs)
        for rows in ROWS:
            fewer = replace(inputs, x=inputs.x[:rows], num_tokens=jnp.int32(rows))
            (seen,) = self.multiply(replace(scenario, rows=rows), fewer)
            np.testing.assert_array_equal(seen, together[:rows], strict=True)
