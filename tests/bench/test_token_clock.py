"""Records of a real loop."""

from __future__ import annotations

from fastgen_jax import SamplingParams
from fastgen_jax.bench.summary import summarize
from fastgen_jax.bench.token_clock import TokenClock
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.testing import fake_engine


def test_every_token_has_its_time() -> None:
    now = 0.0
    engine = fake_engine(clock=lambda: now, eos_token_ids=())
    clock = TokenClock(lambda: now)
    targets = LatencyTargets(ttft=5.0)
    for length in (20, 4):
        engine.submit([length] * length, SamplingParams(max_tokens=3), targets=targets)
    while engine.has_work:
        now += 1.0
        clock.look(completion.request for completion in engine.step())
    first, second = clock.records()
    # A step's results are read in the pass after it was launched.
    assert first.token_times.tolist() == [3.0, 4.0, 5.0]
    assert second.token_times.tolist() == [3.0, 4.0, 5.0]
    assert (first.num_prompt_tokens, first.arrival_time, first.is_complete) == (20, 0.0, True)
    assert summarize(clock.records()).num_met == 2


def test_an_aborted_request_is_incomplete() -> None:
    engine = fake_engine()
    clock = TokenClock()
    (completion,) = engine.submit([1] * 3, SamplingParams(max_tokens=9))
    for _ in range(3):
        engine.step()
    engine.abort(completion.request)
    clock.look([completion.request])
    (record,) = clock.records()
    assert record.num_output_tokens == 2
    assert not record.is_complete
