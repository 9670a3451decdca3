"""Costs from the JSON of ``fastgen plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.costs.roofline import RooflineCost
from fastgen_jax.sim.load import StepLoad

STORED = Path(__file__).parents[3] / "benchmarks" / "results" / "plan_table.json"


def step(num_tokens: int, decodes: int, chunk: int, attention: float, rest: float) -> Any:
    return {
        "num_tokens": num_tokens,
        "num_rows": 8,
        "estimate": {
            "load": {"num_decodes": decodes, "chunk": chunk, "context": 100},
            "seconds": attention + rest,
            "seconds_by_kind": [["gemm", rest], ["attention", attention]],
        },
    }


def seconds_of_pairs(decodes: int, chunk: int) -> float:
    """1 us a key and 0.1 us a pair, at a context of 100."""
    keys = decodes * 100 + (100 if chunk else 0)
    pairs = decodes * 100 + chunk * (100 - chunk) + chunk * (chunk + 1) // 2
    return 1e-6 * keys + 1e-7 * pairs


PLAN = {
    "steps": [
        step(8, 8, 0, seconds_of_pairs(8, 0), 0.01),
        step(64, 7, 57, seconds_of_pairs(7, 57), 0.03),
    ]
}


def load(num_tokens: int, num_rows: int = 1, keys: int = 0, pairs: int = 0) -> StepLoad:
    return StepLoad(num_tokens=num_tokens, num_rows=num_rows, num_keys=keys, num_pairs=pairs)


def test_attention_is_told_apart() -> None:
    cost = RooflineCost.from_plan(PLAN)
    assert cost.per_key == pytest.approx(1e-6)
    assert cost.per_pair == pytest.approx(1e-7)


def test_the_smallest_shape_that_holds_the_load() -> None:
    cost = RooflineCost.from_plan(PLAN, per_step=0.5)
    assert cost.seconds(load(8)) == pytest.approx(0.51)
    assert cost.seconds(load(9)) == pytest.approx(0.53)
    assert cost.seconds(load(8, keys=1000, pairs=1000)) == pytest.approx(0.51 + 1.1e-3)
    for impossible in (load(65), load(8, num_rows=9)):
        with pytest.raises(ConfigError, match=r"^shapes=.*token_budget"):
            cost.seconds(impossible)


@pytest.mark.parametrize("index", range(4))
def test_a_real_plan_costs_what_it_says(index: int) -> None:
    """The load that the plan imagined gives the plan's own estimate."""
    plan = json.loads(STORED.read_text(encoding="utf-8"))["plans"][index]
    cost = RooflineCost.from_plan(plan)
    for made in plan["steps"]:
        estimate = made["estimate"]
        decodes, chunk, context = (
            estimate["load"][name] for name in ("num_decodes", "chunk", "context")
        )
        found = cost.seconds(
            load(
                decodes + chunk,
                decodes + (chunk > 0),
                keys=(decodes + (chunk > 0)) * context,
                pairs=decodes * context + chunk * (context - chunk) + chunk * (chunk + 1) // 2,
            )
        )
        if decodes + chunk > made["num_tokens"] // 2:
            assert found == pytest.approx(estimate["seconds"], rel=0.02)


def test_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for content in ("{", "{}", '{"steps": [{"num_tokens": 3}]}'):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"^plan=.*fastgen plan --json"):
            RooflineCost.from_json(path)
    path.write_text(json.dumps(PLAN))
    assert RooflineCost.from_json(path) == RooflineCost.from_plan(PLAN)
