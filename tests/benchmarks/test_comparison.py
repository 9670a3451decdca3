from __future__ import annotations

import pytest

from benchmarks.comparison import (
    Round,
    check_lengths,
    first_token_agreement,
    make_round,
    ratios,
    summarize,
)
from benchmarks.timing import time_calls
from benchmarks.workload import Mix, Workload, draw_workload
from fastgen_jax.bench.spread import Spread


def workload() -> Workload:
    mix = Mix(num_requests=2, prompt_mean=30, output_mean=10, relative_deviation=0.0)
    return draw_workload(mix)


def turn(engine: str, number: int, seconds: float) -> Round:
    return make_round(
        workload(),
        engine=engine,
        number=number,
        seconds=seconds,
        others_cpu_seconds=0.0,
        load_average=0.0,
    )


def test_rates_count_prompt_and_generated_tokens():
    one = turn("ours", 1, 4.0)
    assert one.total_tokens_per_second == 20.0
    assert one.output_tokens_per_second == 5.0


def test_spread_of_even_and_odd_counts():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0, count=3)
    assert Spread.of([4.0, 1.0]).median == 2.5
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_summaries_keep_engines_apart():
    rounds = [turn("ours", 1, 2.0), turn("peer", 1, 8.0), turn("ours", 2, 4.0)]
    summaries = summarize(rounds)
    assert list(summaries) == ["ours", "peer"]
    assert summaries["ours"].seconds.median == 3.0
    assert summaries["peer"].total_tokens_per_second.median == 10.0


def test_ratios_are_taken_round_by_round():
    seconds = {("ours", 1): 1.0, ("peer", 1): 2.0, ("ours", 2): 4.0, ("peer", 2): 4.0}
    seconds |= {("ours", 3): 2.0, ("peer", 3): 6.0}
    rounds = [turn(engine, number, value) for (engine, number), value in seconds.items()]
    assert ratios(rounds, "ours") == {"peer": Spread(median=2.0, low=1.0, high=3.0, count=3)}


def test_wrong_lengths_are_refused():
    check_lengths("peer", workload(), [[1] * 10, [2] * 10])
    with pytest.raises(RuntimeError, match="peer, request 1: 9 tokens instead of 10"):
        check_lengths("peer", workload(), [[1] * 10, [2] * 9])


def test_first_token_agreement():
    others = {"peer": [[1, 9], [3, 4]], "same": [[1], [2]]}
    assert first_token_agreement([[1, 2], [2, 4]], others) == {"peer": 0.5, "same": 1.0}


def test_time_calls_warms_up_once():
    calls: list[int] = []
    spread = time_calls(lambda: calls.append(1), 3)
    assert len(calls) == 4
    assert spread.count == 3
    assert 0.0 <= spread.low <= spread.median <= spread.high
