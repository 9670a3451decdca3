"""A log that many tests replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgen_jax.request import FinishReason
from tests.replaying.traffic import run


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of sixty requests, many of which were preempted."""
    path = tmp_path_factory.mktemp("replay") / "run.jsonl"
    found = run(path, 19, num_requests=60)
    assert found.metrics.scheduler.num_preemptions > 20
    assert found.metrics.scheduler.num_hit_tokens > 100
    reasons = {completion.request.finish_reason for completion in found.completions}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT}
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert any(one["event"] == "plan" and one["chain_length"] > 1 for one in events)
    assert any(isinstance(one.get("stop_reason"), str) for one in events)
    assert any(isinstance(one.get("stop_reason"), int) for one in events)
    return path
