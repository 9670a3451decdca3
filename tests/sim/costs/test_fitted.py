"""Costs fitted to recorded steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastgen_jax import SamplingParams
from fastgen_jax.errors import ConfigError
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.clock import VirtualClock
from fastgen_jax.sim.costs.fitted import FittedCost, RecordedStep, read_steps, write_steps
from fastgen_jax.sim.load import StepLoad
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.step_recorder import StepRecorder
from fastgen_jax.sim.workloads.lengths import UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.open_loop import OpenLoop
from fastgen_jax.sim.workloads.prompts import UniquePrompts
from fastgen_jax.testing import fake_engine


def loads(count: int, seed: int = 0) -> list[StepLoad]:
    rng = np.random.default_rng(seed)
    made: list[StepLoad] = []
    for _ in range(count):
        rows = int(rng.integers(1, 64))
        tokens = rows + int(rng.integers(0, 700))
        keys = tokens + int(rng.integers(0, 50_000))
        pairs = keys + int(rng.integers(0, 2_000_000))
        made.append(StepLoad(num_tokens=tokens, num_rows=rows, num_keys=keys, num_pairs=pairs))
    return made


def true_seconds(load: StepLoad) -> float:
    return 0.01 + 1e-4 * load.num_tokens + 2e-7 * load.num_keys


def test_a_sum_is_found_again() -> None:
    cost = FittedCost.fit([RecordedStep(load, true_seconds(load)) for load in loads(200)])
    assert cost.per_step == pytest.approx(0.01)
    assert cost.per_token == pytest.approx(1e-4)
    assert cost.per_key == pytest.approx(2e-7)
    assert [cost.per_row, cost.per_pair] == pytest.approx([0, 0], abs=1e-12)
    assert cost.p95_error < 1e-6
    assert cost.num_steps == 200


def test_noise_shows_in_the_error() -> None:
    rng = np.random.default_rng(1)
    noisy = [
        RecordedStep(load, true_seconds(load) * float(rng.normal(1, 0.1))) for load in loads(500)
    ]
    cost = FittedCost.fit(noisy)
    assert cost.per_token == pytest.approx(1e-4, rel=0.1)
    assert cost.median_error == pytest.approx(0.0674, rel=0.2)
    assert cost.p95_error > 2 * cost.median_error


def test_no_term_is_negative() -> None:
    falling = [RecordedStep(load, 1.0 - 1e-4 * load.num_tokens) for load in loads(100)]
    cost = FittedCost.fit(falling)
    terms = (cost.per_step, cost.per_token, cost.per_row, cost.per_key, cost.per_pair)
    assert all(term >= 0 for term in terms)


def test_too_little_is_refused() -> None:
    few = [RecordedStep(load, 1.0) for load in loads(4)]
    with pytest.raises(ConfigError, match="steps=4"):
        FittedCost.fit(few)
    with pytest.raises(ConfigError, match="longer than 0"):
        FittedCost.fit([RecordedStep(load, 0.0) for load in loads(10)])


def test_recorded_steps_come_back(tmp_path: Path) -> None:
    steps = [RecordedStep(load, 0.5) for load in loads(3)]
    write_steps(tmp_path / "steps.jsonl", steps)
    assert read_steps(tmp_path / "steps.jsonl") == steps
    (tmp_path / "steps.jsonl").write_text('{"seconds": 1}\n')
    with pytest.raises(ConfigError, match="line 1"):
        read_steps(tmp_path / "steps.jsonl")


def test_a_recorded_simulation_gives_its_own_cost_back() -> None:
    """What the recorder sees of an engine with two launches in flight is what steps took."""
    cost = FittedCost.fit([RecordedStep(load, true_seconds(load)) for load in loads(50)])
    config = SchedulerConfig(
        token_budget=64,
        max_num_seqs=8,
        max_step_rows=8,
        max_model_len=512,
        block_size=16,
        num_blocks=300,
    )
    mix = RequestMix(prompts=UniquePrompts(UniformLengths(20, 200)), outputs=UniformLengths(5, 60))
    workload = OpenLoop(rate=20, num_requests=60, mix=mix)
    recorder = StepRecorder()
    Simulator(config, cost, observers=[recorder]).run(workload)
    again = FittedCost.fit(recorder.steps)
    assert len(recorder.steps) > 200
    assert again.median_error < 1e-6
    assert again.per_token == pytest.approx(1e-4, rel=0.01)


def test_an_engine_can_be_recorded() -> None:
    clock = VirtualClock()
    recorder = StepRecorder()
    engine = fake_engine(clock=clock, observers=[recorder])
    engine.submit([1] * 30, SamplingParams(max_tokens=10))
    while engine.has_work:
        engine.step()
        clock.now += 1.0
    assert recorder.steps
    assert all(step.seconds == 1.0 for step in recorder.steps)
