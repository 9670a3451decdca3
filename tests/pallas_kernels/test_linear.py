"""Products with packed weights: the public call, the choice, and the XLA reference."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import target as target_module
from pallas_kernels.linear import (
    FormatName,
    LinearConfig,
    LinearNative,
    LinearReference,
    LinearXla,
    PackedMatrix,
    linear,
    rounded_rows,
    select_linear_config,
)
from pallas_kernels.target import CPU, H100
from tests.pallas_kernels.linear_contract import (
    EPSILON,
    LinearContract,
    LinearInputs,
    Scenario,
    check,
    make_inputs,
)

pytestmark = pytest.mark.usefixtures("jax_strict")


def multiply_with(
    scenario: Scenario, inputs: LinearInputs, config: LinearConfig
) -> tuple[np.ndarray, ...]:
    """The results of the public call, jitted as a step is."""
    results = _multiply(
        inputs.x,
        inputs.matrices,
        inputs.layer,
        inputs.num_tokens,
        inputs.norm,
        inputs.residual,
        gated=scenario.gated,
        out_dtype=scenario.out_dtype,
        config=config,
    )
    return tuple(np.asarray(result) for result in results)


@functools.partial(jax.jit, static_argnames=("gated", "out_dtype", "config"))
def _multiply(x, matrices, layer, num_tokens, norm, residual, *, gated, out_dtype, config):
    return linear(
        x,
        matrices,
        layer=layer,
        num_tokens=num_tokens,
        norm=norm,
        residual=residual,
        gated=gated,
        out_dtype=out_dtype,
        config=config,
    )


class TestReference(LinearContract):
    """Plain XLA."""

    def multiply(self, scenario: Scenario, inputs: LinearInputs) -> tuple[np.ndarray, ...]:
        """The reference's results."""
        config = LinearReference(rounds_rows=scenario.rounds_rows)
        return multiply_with(scenario, inputs, config)


class TestXla(LinearContract):
    """XLA's own product of float32 rows; rows of bfloat16 are rounded further than is promised."""

    def multiply(self, scenario: Scenario, inputs: LinearInputs) -> tuple[np.ndarray, ...]:
        """Its results."""
        if scenario.dtype == "bfloat16":
            pytest.skip("weights are rounded to bfloat16, which the check doesn't allow for")
        return multiply_with(scenario, inputs, LinearXla(rounds_rows=scenario.rounds_rows))


@pytest.mark.parametrize("has_norm", [False, True])
def test_the_check_notices_an_error_of_one_part_in_a_hundred(has_norm: bool) -> None:
    scenario = Scenario(has_norm=has_norm, dtype="bfloat16", format="bfloat16")
    inputs = make_inputs(scenario)
    (seen,) = multiply_with(scenario, inputs, LinearReference())
    check((seen,), scenario, inputs)
    with pytest.raises(AssertionError, match="times the error"):
        check((seen * np.asarray(1.02, seen.dtype),), scenario, inputs)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("format", ["int8", "q4_1"])
def test_the_check_notices_rows_that_are_not_rounded(format: FormatName, has_norm: bool) -> None:
    scenario = Scenario(format=format, has_norm=has_norm, rounds_rows=True)
    inputs = make_inputs(scenario)
    with pytest.raises(AssertionError, match="times the error"):
        check(multiply_with(scenario, inputs, LinearReference()), scenario, inputs)
    exact = replace(scenario, rounds_rows=False)
    with pytest.raises(AssertionError, match="times the error"):
        check(multiply_with(scenario, inputs, LinearReference(rounds_rows=True)), exact, inputs)


def test_rounded_rows_are_near_the_rows() -> None:
    """Half a step of 1/127 of the largest of 16 numbers at most, and all 255 codes are used."""
    x = jnp.linspace(-1, 1, 16 * 64).reshape(64, 16)[:, ::-1] * 3
    rounded = np.asarray(rounded_rows(x), np.float64)
    steps = np.abs(np.asarray(x)).max(-1, keepdims=True) / 127
    assert (np.abs(rounded - np.asarray(x)) <= 0.5001 * steps).all()
    codes = np.rint(rounded / steps)
    np.testing.assert_allclose(rounded / steps, codes, atol=1e-4)
    assert np.abs(codes).max() == 127


def test_ties_go_to_even_codes() -> None:
    x = jnp.zeros((1, 16)).at[0, :5].set(jnp.asarray([127.0, 0.5, 1.5, 2.5, -3.5]))
    assert np.asarray(rounded_rows(x))[0, :5] == pytest.approx([127, 0, 2, 2, -4])


@pytest.mark.parametrize("layer", [0, 2])
def test_the_check_notices_another_layer(layer: int) -> None:
    scenario = Scenario(format="q4_1")
    inputs = make_inputs(scenario)
    seen = multiply_with(scenario, replace(inputs, layer=jnp.int32(layer)), LinearReference())
    with pytest.raises(AssertionError, match="times the error"):
        check(seen, scenario, inputs)


def test_a_layer_may_be_a_number() -> None:
    scenario = Scenario(format="int8", has_norm=True)
    inputs = make_inputs(scenario)
    seen = linear(
        inputs.x,
        inputs.matrices,
        layer=1,
        num_tokens=5,
        norm=inputs.norm,
        config=LinearReference(),
    )
    check(tuple(np.asarray(result) for result in seen), scenario, inputs)


class TestArguments:
    """What doesn't fit together is refused by name."""

    def refused(self, match: str, scenario: Scenario, **changes: object) -> None:
        inputs = replace(make_inputs(scenario), **changes)
        with pytest.raises(ValueError, match=match):
            multiply_with(scenario, inputs, LinearReference())

    def test_dtypes(self) -> None:
        inputs = make_inputs(Scenario())
        self.refused("x float16", Scenario(), x=inputs.x.astype("float16"))
        self.refused("out_dtype='float16'", Scenario(out_dtype="float16"))

    def test_numbers_of_matrices(self) -> None:
        inputs = make_inputs(Scenario())
        self.refused("there are 0", Scenario(), matrices=())
        self.refused("there are 4", Scenario(), matrices=inputs.matrices * 4)

    def test_sizes(self) -> None:
        other = make_inputs(Scenario(in_features=64)).matrices
        self.refused(r"matrices\[0\] has 64 input features", Scenario(), matrices=other)
        taller = make_inputs(Scenario(num_layers=4)).matrices
        both = make_inputs(Scenario()).matrices + taller
        self.refused(r"matrices\[1\] has 4 layers", Scenario(), matrices=both)

    def test_arrays_of_another_format(self) -> None:
        (matrix,) = make_inputs(Scenario(format="q4_1")).matrices
        without = (replace(matrix, mins=None),)
        self.refused("mins of q4_1 must be given", Scenario(), matrices=without)
        with_mins = (replace(matrix, format="q4_0"),)
        self.refused("mins of q4_0 must not be given", Scenario(), matrices=with_mins)
        wide = (replace(matrix, scales=matrix.scales.astype("float32")),)
        self.refused("scales float32", Scenario(), matrices=wide)
        cut = (replace(matrix, codes=matrix.codes[:, :2]),)
        self.refused(r"codes int32\(3, 2,", Scenario(), matrices=cut)

    def test_norm(self) -> None:
        norm = make_inputs(Scenario(has_norm=True, num_layers=4)).norm
        self.refused(r"norm\.weight float32\(4, 96\)", Scenario(), norm=norm)

    def test_residual_and_gate(self) -> None:
        self.refused(
            "residual belongs to the product of one",
            Scenario(out_features=(48, 48), has_residual=True),
        )
        self.refused("gated=True", Scenario(gated=True))
        self.refused("gated=True", Scenario(out_features=(48, 32), gated=True))
        wrong = jnp.zeros((5, 47))
        self.refused(r"residual float32\(5, 47\)", Scenario(), residual=wrong)
        self.refused("residual bfloat16", Scenario(), residual=jnp.zeros((5, 48), "bfloat16"))


class TestChoice:
    """``select_linear_config``."""

    @pytest.fixture(params=[None, "they weren't built"])
    def obstacle(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> str | None:
        """Why there are no native kernels, if there are none."""
        monkeypatch.setattr(target_module, "native_obstacle", lambda: request.param)
        return request.param

    def test_the_best_on_a_cpu(self, obstacle: str | None) -> None:
        expected = LinearNative() if obstacle is None else LinearReference()
        assert select_linear_config(CPU) == expected

    def test_native_where_it_cannot_be(self, obstacle: str | None) -> None:
        if obstacle is None:
            assert select_linear_config(CPU, implementation="native") == LinearNative()
        else:
            with pytest.raises(ValueError, match=obstacle):
                select_linear_config(CPU, implementation="native")
        with pytest.raises(ValueError, match="runs on a CPU"):
            select_linear_config(H100, implementation="native")

    def test_a_gpu_has_only_xla(self) -> None:
        for name in (None, "xla", "triton", "mosaic_gpu"):
            assert select_linear_config(H100, implementation=name) == LinearReference()

    def test_xla_can_be_asked_for(self) -> None:
        assert select_linear_config(CPU, implementation="xla") == LinearReference()

    def test_rounding_goes_into_the_choice(self, obstacle: str | None) -> None:
        chosen = select_linear_config(CPU, rounds_rows=True)
        assert (chosen.rounds_rows, obstacle is None) == (True, isinstance(chosen, LinearNative))
        assert select_linear_config(H100, rounds_rows=True) == LinearReference(rounds_rows=True)

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="'cuda' is unknown"):
            select_linear_config(CPU, implementation="cuda")


@pytest.mark.parametrize("format", ["float32", "int8", "q4_1"])
def test_matrices_are_pytrees(format: FormatName) -> None:
    (matrix,) = make_inputs(Scenario(format=format)).matrices
    leaves, structure = jax.tree.flatten(matrix)
    assert len(leaves) == {"float32": 1, "int8": 2, "q4_1": 3}[format]
    again = jax.tree.unflatten(structure, leaves)
    assert (again.format, again.in_features, again.out_features) == (format, 96, 48)
    assert again.num_layers == 3
    shapes = jax.eval_shape(lambda matrix: matrix, matrix)
    expected = PackedMatrix.abstract(format, num_layers=3, in_features=96, out_features=48)
    assert shapes == expected
    assert matrix.num_bytes == expected.num_bytes == sum(leaf.nbytes for leaf in leaves)


def test_epsilon_counts() -> None:
    scenario = Scenario(has_norm=True)
    inputs = make_inputs(scenario)
    assert inputs.norm is not None
    small = replace(inputs, x=inputs.x * EPSILON)
    (seen,) = multiply_with(scenario, small, LinearReference())
    check((seen,), scenario, small)
    norm = replace(inputs.norm, epsilon=1e-12)
    (other,) = multiply_with(scenario, replace(small, norm=norm), LinearReference())
    with pytest.raises(AssertionError, match="times the error"):
        check((other,), scenario, small)
