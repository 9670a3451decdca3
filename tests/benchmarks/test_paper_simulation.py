"""The paper's comparison, simulated: the arithmetic around it, and the results that are stored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.paper_engines import ENGINES, SCALED, OwnCosts
from benchmarks.paper_figures import CLIENTS, CURVES, EFFECTIVE
from benchmarks.paper_fit import ends, fit, latency
from benchmarks.paper_simulation import RESULT, decisions, latency_at, measure, versus
from fastgen_jax.sim.result import SimulatedStep, SimulationResult
from fastgen_jax.sim.simulator import Simulator


def step(seconds: float, num_tokens: int, num_decode_tokens: int) -> SimulatedStep:
    return SimulatedStep(0.0, 1.0, 1.0 + seconds, 1, num_tokens, num_decode_tokens, 1, 0, 0)


def test_decisions_say_where_time_and_decodes_went() -> None:
    metrics = Simulator.__module__  # any object will do: only steps are looked at
    result = SimulationResult(
        records=(),
        steps=(step(3, 100, 0), step(1, 4, 4), step(4, 20, 6)),
        refused=(),
        scheduler=metrics,  # type: ignore[arg-type]
    )
    found = decisions(result)
    assert found["share_of_time_prompts_alone"] == pytest.approx(3 / 8)
    assert found["share_of_time_decodes_alone"] == pytest.approx(1 / 8)
    assert found["share_of_time_both"] == pytest.approx(4 / 8)
    assert found["share_of_decodes_beside_prompts"] == pytest.approx(0.6)


def test_latency_at_a_rate_lies_between_its_neighbours() -> None:
    points = [
        {"clients_over_latency": rate, "latency": {"mean": latency}}
        for rate, latency in ((1.0, 2.0), (2.0, 3.0), (1.5, 9.0))
    ]
    assert latency_at(points, 1.25) == pytest.approx(2.25)
    assert math.isnan(latency_at(points, 2.5))


def test_a_ratio_beside_the_papers() -> None:
    assert versus(3.0, 2.0, 2.0)["error"] == pytest.approx(-0.25)


def test_read_offs_are_whole() -> None:
    assert all(len(values) == len(CLIENTS) for values in EFFECTIVE.values())
    for points in CURVES.values():
        for point in points:
            assert point.clients / point.latency == pytest.approx(
                point.requests_per_second, rel=0.06
            )


def test_a_small_run_orders_the_engines() -> None:
    """At 16 clients decodes stall in the one and not in the other."""
    points = {name: measure(engine, SCALED, (2600, 60), 16, 48) for name, engine in ENGINES.items()}
    assert points["fastgen"]["gaps"]["p95"] < points["vllm"]["gaps"]["p95"] / 2
    assert points["vllm"]["decisions"]["share_of_time_both"] == 0.0
    assert points["fastgen"]["decisions"]["share_of_time_both"] > 0.5


def test_the_stored_result_is_of_these_engines() -> None:
    stored = json.loads(Path(RESULT).read_text(encoding="utf-8"))
    for name, engine in ENGINES.items():
        assert stored["settings"]["engines"][name]["own"]["factor"] == engine.own.factor
    assert stored["settings"]["num_requests"] == 512


def test_the_stored_prices_meet_the_ends_of_the_papers_curves() -> None:
    """They were fitted to these four points of each engine."""
    for name, engine in ENGINES.items():
        for setup, point in ends(name):
            if point.clients == 1:
                found = latency(engine, engine.own, setup, 1, 64)
                assert found == pytest.approx(point.latency, rel=0.05)


def test_a_fit_gets_better() -> None:
    start = OwnCosts(factor=1.5, per_step=0.05, per_row=0.0015)
    _, first = fit("fastgen", start=start, num_requests=24, tries=4)
    _, later = fit("fastgen", start=start, num_requests=24, tries=16)
    assert later < first
