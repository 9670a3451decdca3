"""The paper's service level agreement, held against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.bench.sla import (
    ServiceLevel,
    effective_throughput,
    moving_averages,
    throughput,
)
from fastgen_jax.errors import ConfigError


def record(ttft: float, *gaps: float, prompt: int = 512, **more: Any) -> RequestRecord:
    times = more.pop("arrival_time", 0.0) + np.cumsum([ttft, *gaps])
    return RequestRecord(
        request_id="a",
        arrival_time=more.pop("arrival", 0.0),
        num_prompt_tokens=prompt,
        token_times=times,
        **more,
    )


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(1, 50))
def test_averages_are_weighted_sums_over_sums_of_weights(gaps: list[float], span: float) -> None:
    alpha = 2 / (span + 1)
    for index, average in enumerate(moving_averages(np.array(gaps), span).tolist()):
        weights = [(1 - alpha) ** (index - i) for i in range(index + 1)]
        expected = sum(w * gap for w, gap in zip(weights, gaps, strict=False)) / sum(weights)
        assert average == pytest.approx(expected)


def test_averages_are_those_of_the_papers_scripts() -> None:
    """What pandas 3.1.1 gives for Series([1, 0, 0, 2, 0.5]).ewm(span=16).mean()."""
    expected = [1.0, 0.46875, 0.2925877763328999, 0.8025899805447472, 0.726062178833034]
    gaps = np.array([1.0, 0.0, 0.0, 2.0, 0.5])
    assert moving_averages(gaps, 16).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_first_token_has_its_prompts_time() -> None:
    level = ServiceLevel(token_rate=4)
    assert level.passes(record(1.0))
    assert not level.passes(record(1.001))
    assert level.passes(record(2.0, prompt=1024))


def test_every_average_counts() -> None:
    level = ServiceLevel(token_rate=4)
    assert level.passes(record(0.5, *[0.2] * 50))
    assert not level.passes(record(0.5, 0.25)), "the limit itself is too slow"
    assert not level.passes(record(0.5, 0.3, *[0.0] * 50)), "the first gap stands alone"
    assert level.passes(record(0.5, *[0.05] * 20, 1.5, *[0.05] * 20)), "a stall is averaged out"
    assert not level.passes(record(0.5, *[0.05] * 20, 2.2, *[0.05] * 20))
    assert not level.passes(record(0.5, *[0.05] * 20, 1.5, 1.5, *[0.05] * 20))


def test_what_never_came_or_failed_doesnt_pass() -> None:
    level = ServiceLevel(token_rate=4)
    empty = RequestRecord(
        request_id="a", arrival_time=0, num_prompt_tokens=512, token_times=np.array([])
    )
    assert not level.passes(empty)
    assert not level.passes(record(0.5, 0.1, is_complete=False))


def test_effective_throughput_is_throughput_times_the_share_that_passes() -> None:
    records = [record(0.5, 0.1), record(3.0, 0.1), record(0.5, 0.4), record(3.5, 0.5)]
    found = effective_throughput(records, ServiceLevel(token_rate=4))
    assert throughput(records) == found.requests_per_second == pytest.approx(1.0)
    assert (found.num_passed, found.num_late, found.num_slow) == (1, 2, 2)
    assert (found.share, found.effective) == (0.25, pytest.approx(0.25))
    nothing = effective_throughput([], ServiceLevel(token_rate=4))
    assert (nothing.share, nothing.effective) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["token_rate", "prompt_rate", "span"])
def test_no_rates_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}=0"):
        ServiceLevel(**({"token_rate": 1.0} | {name: 0}))
