from __future__ import annotations

import pytest

from benchmarks.matmul_limit import (
    MatmulTimes,
    Products,
    decode_shape,
    limit_as_run,
    limit_ideally_packed,
    limits_of,
    random_weights,
)
from benchmarks.workload import Mix, draw_workload
from fastgen_jax.batching import StepShape
from fastgen_jax.bench.spread import Spread
from fastgen_jax.models.config import llama_config

pytestmark = pytest.mark.usefixtures("jax_strict")

ONE, ROWS, FULL = StepShape(1, 1), StepShape(4, 4), StepShape(64, 4)
SECONDS = {ONE: 0.5, ROWS: 1.0, FULL: 8.0}


def test_decode_shape_is_the_smallest_with_all_rows():
    assert decode_shape([FULL, ONE, ROWS]) == ROWS
    assert decode_shape([FULL]) == FULL


def test_limit_as_run_weighs_shapes_by_their_steps():
    assert limit_as_run(120, {ROWS: 4, FULL: 2}, SECONDS) == 6.0


def test_limit_ideally_packed():
    limit = limit_ideally_packed(
        num_prompt_tokens=128, num_output_tokens=34, num_requests=2, seconds=SECONDS
    )
    # Two full steps of 8 s, and eight decode steps of 1 s for all but the first tokens.
    assert limit == pytest.approx(162 / 24)


def test_limits_of_a_workload():
    mix = Mix(num_requests=4, prompt_mean=32, output_mean=9, relative_deviation=0.0)
    times = [
        MatmulTimes(shape=shape, layers=Spread.of([seconds - 0.25]), head=Spread.of([0.25]))
        for shape, seconds in SECONDS.items()
    ]
    limits = limits_of(times, {FULL: 2, ROWS: 9}, draw_workload(mix))
    assert limits == {"ideally_packed": pytest.approx(164 / 24), "as_run": pytest.approx(164 / 25)}
    assert list(limits_of(times, {}, draw_workload(mix))) == ["ideally_packed"]


def test_products_of_a_small_model_are_timed():
    model = llama_config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        tie_word_embeddings=True,
    )
    times = Products(model, random_weights(model, "bfloat16")).time(StepShape(8, 4), repeats=2)
    assert times.layers.count == times.head.count == 2
    assert 0.0 < times.seconds < 10.0
