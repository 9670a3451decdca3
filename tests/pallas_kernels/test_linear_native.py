"""The native product against the shared contract, and on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.config import usable_cores
from pallas_kernels.linear import FormatName, LinearNative, linear
from pallas_kernels.native import native_obstacle, set_num_threads
from tests.pallas_kernels.linear_contract import (
    LinearContract,
    LinearInputs,
    Scenario,
    check,
    make_inputs,
)

pytestmark = pytest.mark.skipif(
    native_obstacle() is not None, reason=f"no native kernels: {native_obstacle()}"
)


def multiply(scenario: Scenario, inputs: LinearInputs) -> tuple[np.ndarray, ...]:
    def call(inputs: LinearInputs) -> tuple[jax.Array, ...]:
        return linear(
            inputs.x,
            inputs.matrices,
            layer=inputs.layer,
            num_tokens=inputs.num_tokens,
            norm=inputs.norm,
            residual=inputs.residual,
            gated=scenario.gated,
            out_dtype=scenario.out_dtype,
            config=LinearNative(rounds_rows=scenario.rounds_rows),
        )

    results = tuple(np.array(result) for result in call(inputs))
    for result in results:
        result[scenario.used.stop :] = 0  # what lies there isn't even a number at times
    return results


class TestNative(LinearContract):
    is_same_in_any_shape: ClassVar[bool] = True

    def multiply(self, scenario: Scenario, inputs: LinearInputs) -> tuple[np.ndarray, ...]:
        return multiply(scenario, inputs)


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    set_num_threads(usable_cores())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize("rounds_rows", [False, True])
@pytest.mark.parametrize("format", ["bfloat16", "q4_1", "int8"])
def test_threads_do_not_change_a_bit(format: FormatName, rows: int, rounds_rows: bool) -> None:
    scenario = Scenario(
        format=format,
        rows=rows,
        out_features=(90, 90),
        gated=True,
        has_norm=True,
        rounds_rows=rounds_rows,
    )
    inputs = make_inputs(scenario)
    results = []
    for count in (1, 2, 5):
        set_num_threads(count)
        results.append(multiply(scenario, inputs)[0])
    np.testing.assert_array_equal(results[0], results[1], strict=True)
    np.testing.assert_array_equal(results[0], results[2], strict=True)


@pytest.mark.parametrize(
    ("format", "rounds_rows"),
    [("bfloat16", False), ("int8", False), ("q4_1", False), ("int8", True), ("q4_1", True)],
)
def test_many_rows_of_a_deep_matrix(format: FormatName, rounds_rows: bool) -> None:
    """Rows and depth that take the kernel more than one round of its blocks."""
    scenario = Scenario(
        format=format,
        rows=600,
        in_features=1312,
        out_features=(40,),
        num_layers=1,
        layer=0,
        rounds_rows=rounds_rows,
    )
    inputs = make_inputs(scenario)
    seen = multiply(scenario, inputs)
    check(seen, scenario, inputs)
    first = make_inputs(scenario)
    (alone,) = multiply(
        replace(scenario, rows=1),
        LinearInputs(
            x=first.x[500:501],
            matrices=first.matrices,
            layer=jnp.int32(0),
            num_tokens=jnp.int32(1),
            norm=None,
            residual=None,
        ),
    )
    np.testing.assert_array_equal(seen[0][500], alone[0], strict=True)
