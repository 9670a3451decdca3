"""A run's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.bench.summary import Percentiles, meets, summarize
from fastgen_jax.latency_targets import LatencyTargets


def record(arrival: float, *times: float, **more: bool) -> RequestRecord:
    return RequestRecord(
        request_id="a",
        arrival_time=arrival,
        num_prompt_tokens=3,
        token_times=np.array(times),
        **more,  # type: ignore[arg-type]
    )


def test_a_records_times() -> None:
    found = record(1, 3, 4, 7)
    assert (found.ttft, found.latency, found.tpot, found.finish_time) == (2, 6, 2, 7)
    assert found.gaps.tolist() == [1, 3]
    assert record(1, 2).tpot == 0
    assert math.isinf(record(1).ttft)
    assert math.isinf(record(1).latency)


@given(st.lists(st.floats(-10, 10), min_size=1))
def test_percentiles_are_numpys(values: list[float]) -> None:
    found = Percentiles.of(values)
    assert found is not None
    expected = np.percentile(values, [50, 90, 95, 99])
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx(expected.tolist())
    assert found.max == max(values)


def test_those_that_never_came_count_as_infinite() -> None:
    found = Percentiles.of([1.0] * 94 + [np.inf] * 6)
    assert found is not None
    assert (found.p50, found.p90, found.p95) == (1, 1, np.inf)
    assert math.isinf(found.mean)
    assert Percentiles.of([]) is None


def test_a_summary_leaves_nobody_out() -> None:
    records = [
        record(0, 1, 2, 3),
        record(1, 5, 6),
        record(2, 10),
        record(0, is_complete=False),
    ]
    found = summarize(records, LatencyTargets(ttft=4, tpot=1))
    assert (found.num_requests, found.num_failed) == (4, 1)
    assert found.requests_per_second == pytest.approx(0.3)
    assert found.output_tokens_per_second == pytest.approx(0.6)
    assert found.ttft is not None
    assert math.isinf(found.ttft.max)
    assert found.ttft.p50 == 6
    assert found.gaps is not None
    assert found.gaps.max == 1
    assert (found.num_met, found.goodput) == (2, pytest.approx(0.2))
    assert summarize([]).requests_per_second == 0


def test_targets_are_met_or_missed() -> None:
    found = record(0, 2, 3, 6)
    assert meets(found, LatencyTargets())
    assert meets(found, LatencyTargets(ttft=2, tpot=2))
    assert not meets(found, LatencyTargets(ttft=1.9))
    assert not meets(found, LatencyTargets(tpot=1.9))
