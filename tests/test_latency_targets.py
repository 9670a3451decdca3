"""Latency targets: refused where they are no times, seen by the policy where they are."""

from __future__ import annotations

import pytest

from fastgen_jax import SamplingParams
from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.testing import fake_engine


@pytest.mark.parametrize("name", ["ttft", "tpot"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_what_is_no_time_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name}=.*leave it out"):
        LatencyTargets(**{name: value})  # type: ignore[arg-type]


def test_a_requests_targets_reach_the_scheduler() -> None:
    admitted: list[str] = []
    engine = fake_engine(
        policy="deadlines",
        max_num_seqs=1,
        on_plan=lambda plan: admitted.extend(r.request_id for r in plan.admitted),
    )
    for ttft in (None, 9.0, 1.0):
        engine.submit([1, 2], SamplingParams(max_tokens=2), targets=LatencyTargets(ttft=ttft))
    engine.run()
    assert admitted == ["2", "1", "0"]
