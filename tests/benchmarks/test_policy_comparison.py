"""The measured comparison of policies: its arithmetic, its setups and its tables."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks.engine_load import serve
from benchmarks.policy_points import Point, Run, prediction_errors, ratios
from benchmarks.policy_setups import POLICIES, SETUPS, SPLITFUSE
from benchmarks.policy_table import policy_comparison
from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.bench.sla import ServiceLevel
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.lengths import UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.prompts import UniquePrompts
from fastgen_jax.testing import fake_engine

LEVEL = ServiceLevel(token_rate=10, prompt_rate=100)
POINT = Point(
    rate=2.0,
    effective=1.0,
    num_requests=4,
    num_late=1,
    num_slow=1,
    ttft_p50=0.1,
    ttft_p95=0.2,
    gap_p50=0.01,
    gap_p95=0.02,
    gap_p99=0.03,
    latency_mean=1.0,
    latency_p95=2.0,
)
RUN = Run(setup="96/60", policy=SPLITFUSE, clients=2, round=0, measured=POINT, simulated=POINT)


def changed(run: Run = RUN, **measured: float) -> Run:
    return replace(run, measured=replace(POINT, **measured))


def test_a_point_counts_what_was_in_time() -> None:
    records = [
        RequestRecord(
            request_id=str(index),
            arrival_time=0.0,
            num_prompt_tokens=50,
            token_times=np.array([first, first + gap, first + 2 * gap]),
        )
        for index, (first, gap) in enumerate(((0.4, 0.05), (0.6, 0.05), (0.4, 0.2)))
    ]
    point = Point.of(records, LEVEL)
    assert (point.num_late, point.num_slow, point.num_requests) == (1, 1, 3)
    assert point.effective == pytest.approx(point.rate / 3)
    assert point.gap_p50 == pytest.approx(0.05)


def test_ratios_are_taken_round_by_round() -> None:
    other = replace(RUN, policy="prefill_first")
    runs = [
        changed(effective=3.0, gap_p95=0.01),
        changed(other, effective=1.0, gap_p95=0.03),
        changed(replace(RUN, round=1), effective=4.0, gap_p95=0.02),
        changed(replace(other, round=1), effective=0.0, gap_p95=0.03),
    ]
    found = ratios(runs, "96/60")["prefill_first"]["by_clients"]["2"]
    assert found["effective"]["median"] == 3.0
    assert found["effective"]["num_infinite"] == 1
    assert found["gap_p95"]["median"] == pytest.approx(2.25)
    assert (found["gap_p95"]["low"], found["gap_p95"]["high"]) == (pytest.approx(1.5), 3.0)


def test_errors_of_the_simulation_are_relative_to_the_measured() -> None:
    runs = [changed(rate=1.0), changed(rate=2.0), changed(rate=2.2)]
    rate = prediction_errors(runs)["rate"]
    assert rate["median"] == 0.0
    assert rate["largest_size"] == 1.0
    assert rate["share_within"] == pytest.approx(2 / 3)


def test_setups_keep_the_papers_proportions() -> None:
    """Prompt to budget as 2600 to 768, and a limit between tokens above a full step."""
    paper_like = SETUPS[0]
    assert paper_like.prompt_tokens / paper_like.token_budget == pytest.approx(2600 / 768, rel=0.02)
    for setup in SETUPS:
        for policy in POLICIES:
            longest = setup.token_budget if policy == SPLITFUSE else setup.longest_prompt
            assert setup.budget_of(policy) >= longest


def test_an_engine_is_served_every_request_of_a_workload() -> None:
    mix = RequestMix(prompts=UniquePrompts(UniformLengths(1, 20)), outputs=UniformLengths(1, 9))
    workload = ClosedLoop(num_clients=3, num_requests=10, mix=mix, start_spread=0.01)
    engine = fake_engine(vocab_size=2000, eos_token_ids=(), tokenizer=None)
    ended: list[int] = []
    records = serve(engine, workload, on_end=lambda: ended.append(1))
    assert len(records) == len(ended) == 10
    assert all(record.is_complete and record.ttft >= 0 for record in records)


def test_the_tables_hold_every_point() -> None:
    runs = [
        changed(replace(RUN, policy=policy), effective=float(policy == SPLITFUSE))
        for policy in POLICIES
    ]
    content = {
        "settings": {
            "rounds": 1,
            "requests": 4,
            "dtype": "bfloat16",
            "policies": POLICIES,
            "setups": [asdict(replace(SETUPS[0], clients=(2,)))],
        },
        "runs": [asdict(run) for run in runs],
        "ratios": {"96/60": ratios(runs, "96/60")},
        "prediction_errors": prediction_errors(runs),
    }
    text = policy_comparison(content)
    assert all(name in text for name in POLICIES.values())
    assert "| prompts first (vLLM, 2023) | 2 | ∞ | 1.00 (1.00 to 1.00) |" in text
    assert "100% within 10%" in text
