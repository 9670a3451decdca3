"""Costs from a measured curve."""

from __future__ import annotations

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.costs.table import LLAMA_2_13B_A100_MS, TableCost
from fastgen_jax.sim.load import StepLoad


def load(num_tokens: int, num_rows: int = 1, num_keys: int = 0) -> StepLoad:
    return StepLoad(num_tokens=num_tokens, num_rows=num_rows, num_keys=num_keys, num_pairs=0)


def test_the_curve_goes_through_its_points() -> None:
    cost = TableCost.scaled(LLAMA_2_13B_A100_MS)
    for tokens, milliseconds in LLAMA_2_13B_A100_MS.items():
        assert cost.seconds(load(tokens)) == pytest.approx(milliseconds / 1e3)


def test_between_and_beyond_the_points_it_is_straight() -> None:
    cost = TableCost(points=((10, 1.0), (20, 2.0), (40, 3.0)))
    seconds = [cost.seconds(load(tokens)) for tokens in (5, 15, 30, 60)]
    assert seconds == pytest.approx([0.5, 1.5, 2.5, 4.0])


def test_what_is_added() -> None:
    cost = TableCost.scaled(
        {10: 1000, 20: 1000}, 2.0, per_step=0.5, per_row=0.25, per_token=0.1, per_key=0.01
    )
    assert cost.seconds(load(10, 4, 100)) == pytest.approx(2 + 0.5 + 1 + 1 + 1)


@pytest.mark.parametrize("points", [(), ((1, 1.0),), ((2, 1.0), (1, 2.0)), ((1, 0.0), (2, 1.0))])
def test_no_curve_is_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ConfigError, match=r"^points="):
        TableCost(points=points)
